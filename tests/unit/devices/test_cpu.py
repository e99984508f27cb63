from pathlib import Path

import pytest
import torch

from image_classification.core.errors import DeviceError
from image_classification.devices.cpu import CpuAccelerator, cpu_model


def test_cpu_model_is_read_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: AMD EPYC 9654 96-Core Processor\nflags: a\n")
    assert cpu_model(cpuinfo) == "AMD EPYC 9654 96-Core Processor"
    # Arm's cpuinfo has no such line.
    cpuinfo.write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    assert cpu_model(cpuinfo)
    assert cpu_model(tmp_path / "absent")


def test_tf32_and_float16_are_refused_with_a_remedy() -> None:
    cpu = CpuAccelerator()
    with pytest.raises(DeviceError, match=r"Ampere.*--precision FP32"):
        cpu.check_precision("TF32", "float32")
    with pytest.raises(DeviceError, match=r"float16.*bfloat16"):
        cpu.check_precision("AMP", "float16")
    cpu.check_precision("AMP", "bfloat16")
    cpu.check_precision("BF16", "bfloat16")
    cpu.check_precision("FP32", "float32")


def test_float32_arithmetic_is_ieee() -> None:
    cpu = CpuAccelerator()
    torch.set_float32_matmul_precision("medium")  # would let oneDNN multiply in bfloat16
    try:
        cpu.set_matmul_precision("FP32")
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.conv.fp32_precision == "ieee"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_autocast() -> None:
    cpu, a = CpuAccelerator(), torch.ones(2, 2)
    with cpu.autocast("bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    with cpu.autocast("float32"):
        assert (a @ a).dtype == torch.float32


def test_peak_memory_is_in_bytes() -> None:
    peak = CpuAccelerator().peak_memory_bytes()
    # torch alone has more than 50 MB resident; counts of KiB or pages would be lower.
    assert peak is not None and peak > 50_000_000
