from pathlib import Path

from image_classification.core.host import CgroupLimits, read_cgroup

MIB = 2**20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_version_2_takes_the_tightest_of_the_group_and_those_above(tmp_path: Path) -> None:
    base = "sys/fs/cgroup"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slurm/job_7",
            f"{base}/cgroup.controllers": "cpu memory pids",
            f"{base}/slurm/memory.max": str(900 * MIB),
            f"{base}/slurm/memory.current": str(800 * MIB),
            f"{base}/slurm/memory.stat": f"anon 5\ninactive_file {50 * MIB}",
            f"{base}/slurm/cpu.max": "max 100000",
            f"{base}/slurm/pids.max": "max",
            f"{base}/slurm/job_7/memory.max": str(1000 * MIB),
            f"{base}/slurm/job_7/memory.current": str(100 * MIB),
            f"{base}/slurm/job_7/memory.stat": "inactive_file 0",
            f"{base}/slurm/job_7/cpu.max": "150000 100000",
            f"{base}/slurm/job_7/pids.max": "512",
        },
    )
    assert read_cgroup(root) == CgroupLimits(2, 900 * MIB, 150 * MIB, 1.5, 512)


def test_version_1_in_a_container_that_sees_only_its_own_folder(tmp_path: Path) -> None:
    # The path is the host's and not there inside: the mount itself is the container's group.
    base = "sys/fs/cgroup"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n1:pids:/docker/ab",
            f"{base}/memory/memory.limit_in_bytes": str(512 * MIB),
            f"{base}/memory/memory.usage_in_bytes": str(500 * MIB),
            f"{base}/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {20 * MIB}",
            f"{base}/cpu/cpu.cfs_quota_us": "-1",
            f"{base}/cpu/cpu.cfs_period_us": "100000",
            f"{base}/pids/pids.max": "max",
        },
    )
    assert read_cgroup(root) == CgroupLimits(1, 512 * MIB, 32 * MIB, None, None)


def test_version_1_without_a_limit_has_a_huge_one(tmp_path: Path) -> None:
    limit = "sys/fs/cgroup/memory/memory.limit_in_bytes"
    root = write(tmp_path, {"proc/self/cgroup": "4:memory:/", limit: "9223372036854771712"})
    assert read_cgroup(root) == CgroupLimits(version=1)


def test_no_control_groups(tmp_path: Path) -> None:
    assert read_cgroup(tmp_path) == CgroupLimits()


def test_this_machine_is_read_without_a_fault() -> None:
    limits = read_cgroup()
    assert limits.memory_headroom_bytes is None or limits.memory_headroom_bytes > 0
