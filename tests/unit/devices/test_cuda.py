"""The CUDA accelerator and CPU affinity on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

import image_classification
from image_classification.core.errors import ConfigError, DeviceError
from image_classification.core.host import nvml
from image_classification.devices import cuda
from image_classification.devices.cuda import (
    CudaAccelerator,
    cudnn_name,
    partition,
    read_siblings,
    set_affinity,
)
from tests.support.nvml import FakeDevice, FakeDriver, loaded

without_gpu = pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU here")


def test_cudnn_name() -> None:
    assert cudnn_name(91002) == "9.10.2"
    assert cudnn_name(90100) == "9.1.0"
    assert cudnn_name(8902) == "8.9.2"
    assert cudnn_name(None) is None


@without_gpu
def test_without_a_gpu_found_is_empty_and_device_raises() -> None:
    cuda = CudaAccelerator()
    assert cuda.found().count == 0
    with pytest.raises(DeviceError, match=r"platform\.device=cpu"):
        cuda.device(0)


@without_gpu
def test_environment_without_a_gpu() -> None:
    found = CudaAccelerator().environment()
    assert found["cuda"] == torch.version.cuda
    assert found["devices"] == []


_SET_AND_READ = """
import torch
from image_classification.devices.cuda import CudaAccelerator
for name in ("FP32", "TF32", "AMP"):
    CudaAccelerator().set_matmul_precision(name)
    legacy = torch.backends.cuda.matmul.allow_tf32  # what Inductor reads; raises on a mixed state
    conv = torch.backends.cudnn.conv.fp32_precision
    print(name, torch.backends.cuda.matmul.fp32_precision, conv, legacy)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ngc_preset", ["0", "1"])
def test_matmul_precision_is_set_with_any_ngc_preset(ngc_preset: str) -> None:
    # In a new process, since torch reads the preset at its start.
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", _SET_AND_READ],
        env={
            **os.environ,
            "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ngc_preset,
            "PYTHONPATH": str(Path(image_classification.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.stdout.splitlines() == [
        "FP32 ieee ieee False",
        "TF32 tf32 tf32 True",
        "AMP ieee ieee False",
    ], out.stderr


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


def test_read_siblings(tmp_path: Path) -> None:
    for cpu, text in ((0, "0,4"), (4, "0,4"), (1, "1")):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n")
    (tmp_path / "cpufreq").mkdir()
    assert read_siblings(tmp_path) == {0: (0, 4), 4: (0, 4), 1: (1,)}
    # CPU 9, which the system does not describe, is a separate core.
    assert partition("socket_single", [{4, 0, 1}, {9}], read_siblings(tmp_path)) == [{0, 4}, {9}]


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


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """A GPU at 3B:00 in a machine of 192 CPUs; returns the CPUs that processes are bound to."""
    bound: list[set[int]] = []
    properties = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(cuda, "read_siblings", dict)
    monkeypatch.setattr(os, "sysconf", lambda name: 192)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(1, 192)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: bound.append(cpus))
    return bound


def test_affinity_follows_the_drivers_mask(one_gpu: list[set[int]]) -> None:
    with loaded(FakeDriver(FakeDevice(cpu_affinity=(0b1011, 1 << 63, 0)))):
        set_affinity("socket", 0, 1)
    assert one_gpu == [{1, 3, 127}]  # CPU 0 is not allowed


def test_a_driver_that_does_not_report_the_mask(one_gpu: list[set[int]]) -> None:
    gpu = FakeDevice(errors={"nvmlDeviceGetCpuAffinity": pynvml.NVML_ERROR_NOT_SUPPORTED})
    with (
        loaded(FakeDriver(gpu)),
        pytest.raises(DeviceError, match=r"which CPU cores .*--gpu-affinity none"),
    ):
        set_affinity("socket", 0, 1)
    assert one_gpu == []
