import os
from pathlib import Path

import pytest

from image_classification.core.errors import ConfigError, DeviceError
from image_classification.core.nvml import nvml
from image_classification.devices.affinity import (
    cpus_of_mask,
    partition,
    physical_cores,
    read_siblings,
    set_affinity,
)

# Two sockets of four cores, two threads each: CPU n and n + 8 share a core.
SIBLINGS = {cpu: (cpu % 8, cpu % 8 + 8) for cpu in range(16)}
LEFT = {0, 1, 2, 3, 8, 9, 10, 11}
RIGHT = {4, 5, 6, 7, 12, 13, 14, 15}
FOUR_GPUS = [LEFT, LEFT, RIGHT, RIGHT]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("socket", [LEFT, LEFT, RIGHT, RIGHT]),
        ("socket_single", [{0, 8}, {0, 8}, {4, 12}, {4, 12}]),
        ("socket_single_unique", [{0, 8}, {1, 9}, {4, 12}, {5, 13}]),
        (
            "socket_unique_interleaved",
            [{0, 2, 8, 10}, {1, 3, 9, 11}, {4, 6, 12, 14}, {5, 7, 13, 15}],
        ),
        (
            "socket_unique_continuous",
            [{0, 1, 8, 9}, {2, 3, 10, 11}, {4, 5, 12, 13}, {6, 7, 14, 15}],
        ),
    ],
)
def test_modes_on_two_sockets(mode: str, expected: list[set[int]]) -> None:
    assert partition(mode, FOUR_GPUS, SIBLINGS) == expected


def test_unique_shares_are_equal_with_unevenly_distributed_gpus() -> None:
    # Three GPUs on the left share 4 cores, one on the right has 4: one core each, everywhere.
    for mode in ("socket_unique_interleaved", "socket_unique_continuous"):
        shares = partition(mode, [LEFT, LEFT, LEFT, RIGHT], SIBLINGS)
        assert shares == [{0, 8}, {1, 9}, {2, 10}, {4, 12}]


def test_unique_modes_assign_each_cpu_once_on_a_dgx_a100() -> None:
    # DGX A100: 8 GPUs on four of eight NUMA nodes of 16 cores, 256 CPUs.
    siblings = {cpu: (cpu % 128, cpu % 128 + 128) for cpu in range(256)}
    nodes = [{*range(16 * n, 16 * n + 16), *range(128 + 16 * n, 144 + 16 * n)} for n in range(8)]
    near = [nodes[n] for n in (3, 3, 1, 1, 7, 7, 5, 5)]
    for mode in ("socket_unique_interleaved", "socket_unique_continuous"):
        shares = partition(mode, near, siblings)
        assert [len(s) for s in shares] == [16] * 8
        assert len(set().union(*shares)) == 128
        assert all(share <= socket for share, socket in zip(shares, near, strict=True))


def test_cpus_outside_the_container_are_not_used() -> None:
    allowed = {0, 1, 8, 9, 4, 5}  # without the second threads of the right socket
    near = [cpus & allowed for cpus in FOUR_GPUS]
    assert partition("socket_single_unique", near, SIBLINGS) == [{0, 8}, {1, 9}, {4}, {5}]


@pytest.mark.parametrize(
    ("mode", "near", "words"),
    [
        ("socket", [LEFT, set()], "GPU 1"),
        ("socket", [{0, 1}, {1, 2}], "overlap"),
        ("socket_single_unique", [{0, 8}, {0, 8}], "GPU 1"),
        ("socket_unique_continuous", [{0, 8}, {0, 8}], "fewer CPU cores"),
        ("socket_unique_interleaved", [{0}, {4}, {4}], "fewer CPU cores"),
    ],
)
def test_too_few_cores(mode: str, near: list[set[int]], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        partition(mode, near, SIBLINGS)


def test_reading_cpus_from_the_system(tmp_path: Path) -> None:
    assert cpus_of_mask([0b1011, 1 << 63, 0]) == {0, 1, 3, 127}
    for cpu, text in ((0, "0,4"), (4, "0,4"), (1, "1")):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n")
    (tmp_path / "cpufreq").mkdir()
    assert read_siblings(tmp_path) == {0: (0, 4), 4: (0, 4), 1: (1,)}
    # A CPU that the system does not describe is a separate core.
    assert physical_cores({9, 4, 0, 1}, read_siblings(tmp_path)) == ((0, 4), (1,), (9,))


def test_mode_none_changes_nothing() -> None:
    before = os.sched_getaffinity(0)
    assert set_affinity("none", 0, 1) == before == os.sched_getaffinity(0)


def test_unknown_mode() -> None:
    with pytest.raises(ConfigError, match="socket_single"):
        set_affinity("socket_singel", 0, 1)


def test_without_a_driver_other_modes_are_refused() -> None:
    with nvml() as lib:
        if lib is not None:
            pytest.skip("there is an NVIDIA driver here")
    before = os.sched_getaffinity(0)
    with pytest.raises(DeviceError, match="--gpu-affinity none"):
        set_affinity("socket_unique_continuous", 0, 1)
    assert os.sched_getaffinity(0) == before
