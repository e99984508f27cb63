"""The parts of the CUDA accelerator that need no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import image_classification
from image_classification.core.errors import DeviceError
from image_classification.devices.cuda import CudaAccelerator, cudnn_name

without_gpu = pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU here")


def test_cudnn_version_is_formatted() -> None:
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
    assert found["devices"] == [] and found["cpu"]


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
