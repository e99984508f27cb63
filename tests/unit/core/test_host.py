from pathlib import Path

from image_classification.core.host import (
    BASE_VARIABLE,
    IMAGE_VARIABLE,
    CgroupLimits,
    Mount,
    container_kind,
    container_text,
    mount_of,
    parse_cpu_list,
    read_cgroup,
    read_mounts,
)

MIB = 2**20
ENROOT = [Mount("/etc/passwd", "tmpfs", "/user/enroot/passwd", True)]
TABLE = """\
100 99 0:50 / / ro,relatime master:1 - overlay overlay ro,lowerdir=/l
101 100 0:51 / /dev/shm rw,nosuid - tmpfs shm rw,size=65536k
102 100 8:1 /srv/my\\040runs /runs rw,relatime - ext4 /dev/sda1 rw
103 100 0:52 / /runs/deep rw - nfs4 host:/export rw
104 100 0:60 /user/enroot/passwd /etc/passwd ro - tmpfs tmpfs rw
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_cgroup_2_has_the_tightest_limits_of_the_group_and_its_parents(tmp_path: Path) -> None:
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


def test_cgroup_1_in_a_container_that_sees_only_its_own_folder(tmp_path: Path) -> None:
    # The path is that of the host; in the container, the mount itself is the group.
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


def test_cgroup_1_has_a_huge_number_for_no_limit(tmp_path: Path) -> None:
    limit = "sys/fs/cgroup/memory/memory.limit_in_bytes"
    root = write(tmp_path, {"proc/self/cgroup": "4:memory:/", limit: "9223372036854771712"})
    assert read_cgroup(root) == CgroupLimits(version=1)


def test_without_control_groups_there_are_no_limits(tmp_path: Path) -> None:
    assert read_cgroup(tmp_path) == CgroupLimits()


def test_the_limits_of_this_machine() -> None:
    limits = read_cgroup()
    assert limits.memory_headroom_bytes is None or limits.memory_headroom_bytes > 0


def test_each_kind_of_container(tmp_path: Path) -> None:
    def kind(environ: dict[str, str], mounts: list[Mount] | None = None) -> str:
        return container_kind(environ, mounts or [], tmp_path)

    assert kind({}) == ""
    assert kind({"container": "lxc"}) == "lxc"
    assert kind({}, ENROOT) == "enroot"
    (tmp_path / ".singularity.d").mkdir()
    assert kind({}) == "apptainer"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.containerenv").touch()
    assert kind({"container": "podman"}) == "podman"
    (tmp_path / ".dockerenv").touch()
    assert kind({}) == "docker"
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert kind(pod) == "kubernetes"
    assert kind({**pod, "APPTAINER_CONTAINER": "/x.sif"}) == "apptainer"
    assert kind({"SINGULARITY_CONTAINER": "/x.sif"}) == "apptainer"


def test_the_container_text_names_image_and_base() -> None:
    image = {IMAGE_VARIABLE: "image-classification 0.1.0 cpu"}
    assert container_text("docker", {}) == "docker"
    assert container_text("", {}) == ""
    assert container_text("docker", {BASE_VARIABLE: "python:3.11"}) == "docker"
    assert container_text("docker", image) == "docker, image-classification 0.1.0 cpu"
    assert container_text("docker", {**image, BASE_VARIABLE: ""}) == container_text("docker", image)
    both = {**image, BASE_VARIABLE: "python:3.11-slim"}
    text = "image-classification 0.1.0 cpu on python:3.11-slim"
    assert container_text("podman", both) == f"podman, {text}"
    assert container_text("", both) == f"container, {text}"


def test_a_path_belongs_to_its_longest_mount(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(TABLE)
    mounts = read_mounts(tmp_path)
    assert mounts[2] == Mount("/runs", "ext4", "/srv/my runs", False)

    def kind(path: str) -> str:
        found = mount_of(Path(path), mounts)
        assert found is not None
        return found.kind

    assert [kind(p) for p in ("/", "/runs", "/runs/a", "/runs/deep/x", "/runsaway")] == [
        "overlay",
        "ext4",
        "ext4",
        "nfs4",
        "overlay",
    ]
    assert mounts[0].is_read_only and not mounts[1].is_read_only


def test_without_a_mount_table(tmp_path: Path) -> None:
    assert read_mounts(tmp_path) == []
    assert mount_of(tmp_path, []) is None


def test_the_mounts_of_this_machine() -> None:
    found = mount_of(Path("/proc/self"), read_mounts())
    assert found is not None and found.kind == "proc"


def test_cpu_lists() -> None:
    assert parse_cpu_list("0-3,8\n") == {0, 1, 2, 3, 8}
    assert parse_cpu_list("\n") == set()
