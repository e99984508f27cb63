from pathlib import Path
from typing import Any

import pytest
import torch

from image_classification.core.errors import ConfigError, DeviceError
from image_classification.devices.accelerator import CpuAccelerator, cpu_model


def test_cpu_model_is_read_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: AMD EPYC 9654 96-Core Processor\nflags: a\n")
    assert cpu_model(cpuinfo) == "AMD EPYC 9654 96-Core Processor"
    # Arm's cpuinfo has no such line.
    cpuinfo.write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    assert cpu_model(cpuinfo)
    assert cpu_model(tmp_path / "absent")


def test_check_precision() -> None:
    cpu = CpuAccelerator()
    with pytest.raises(DeviceError, match=r"Ampere.*--precision FP32"):
        cpu.check_precision("TF32", "float32")
    with pytest.raises(DeviceError, match=r"float16.*bfloat16"):
        cpu.check_precision("AMP", "float16")
    cpu.check_precision("AMP", "bfloat16")
    cpu.check_precision("BF16", "bfloat16")
    cpu.check_precision("FP32", "float32")


def test_set_matmul_precision() -> None:
    cpu = CpuAccelerator()
    torch.set_float32_matmul_precision("medium")  # would let oneDNN multiply in bfloat16
    try:
        cpu.set_matmul_precision("FP32")
        assert torch.get_float32_matmul_precision() == "highest"
        mkldnn: Any = torch.backends.mkldnn  # torch has no types for these
        assert mkldnn.matmul.fp32_precision == mkldnn.conv.fp32_precision == "ieee"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_autocast() -> None:
    cpu, a = CpuAccelerator(), torch.ones(2, 2)
    with cpu.autocast("bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    with cpu.autocast("float32"):
        assert (a @ a).dtype == torch.float32


def test_grad_scaler() -> None:
    cpu = CpuAccelerator()
    assert not cpu.grad_scaler(None).is_enabled()
    static = cpu.grad_scaler(128)
    assert static.get_scale() == 128.0 and static.get_growth_interval() == 2**31 - 1
    dynamic = cpu.grad_scaler("dynamic")
    assert dynamic.get_scale() == 65536.0 and dynamic.get_growth_interval() == 2000
    for bad in ("static", 0.0, -1.0):
        with pytest.raises(ConfigError, match="loss_scale"):
            cpu.grad_scaler(bad)


def test_peak_memory_is_in_bytes() -> None:
    peak = CpuAccelerator().peak_memory_bytes()
    # torch alone has more than 50 MB resident; counts of KiB or pages would be lower.
    assert peak is not None and peak > 50_000_000
