from pathlib import Path

from image_classification.core.host import Mount, mount_of, read_mounts

TABLE = """\
100 99 0:50 / / ro,relatime master:1 - overlay overlay ro,lowerdir=/l
101 100 0:51 / /dev/shm rw,nosuid - tmpfs shm rw,size=65536k
102 100 8:1 /srv/my\\040runs /runs rw,relatime - ext4 /dev/sda1 rw
103 100 0:52 / /runs/deep rw - nfs4 host:/export rw
104 100 0:60 /user/enroot/passwd /etc/passwd ro - tmpfs tmpfs rw
"""


def test_the_table_and_the_longest_match(tmp_path: Path) -> None:
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


def test_no_table(tmp_path: Path) -> None:
    assert read_mounts(tmp_path) == []
    assert mount_of(tmp_path, []) is None


def test_the_table_of_this_machine() -> None:
    found = mount_of(Path("/proc/self"), read_mounts())
    assert found is not None and found.kind == "proc"
