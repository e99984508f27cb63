import pytest

from image_classification.core.errors import ConfigError
from image_classification.devices.precision import (
    cuda_lacks,
    make_grad_scaler,
    tf32_conflict,
    torch_dtype,
)

V100, T4, A100, H200 = (7, 0), (7, 5), (8, 0), (9, 0)


@pytest.mark.parametrize(
    ("name", "dtype", "capability", "has"),
    [
        ("FP32", "float32", (6, 0), True),
        ("AMP", "float16", (6, 1), False),
        ("AMP", "float16", V100, True),
        ("AMP", "float16", T4, True),
        ("BF16", "bfloat16", T4, False),
        ("BF16", "bfloat16", A100, True),
        ("TF32", "float32", V100, False),
        ("TF32", "float32", A100, True),
        ("TF32", "float32", H200, True),
    ],
)
def test_precisions_of_a_capability(
    name: str, dtype: str, capability: tuple[int, int], has: bool
) -> None:
    assert (cuda_lacks(name, dtype, capability, "some GPU") is None) is has


def test_the_message_names_device_requirement_and_remedy() -> None:
    message = cuda_lacks("TF32", "float32", V100, "Tesla V100-SXM2-16GB")
    assert message is not None
    for part in ("TF32", "8.0", "Ampere", "Tesla V100-SXM2-16GB", "7.0", "--precision AMP"):
        assert part in message


def test_environment_variables_that_override_tf32() -> None:
    assert tf32_conflict("FP32", {}) is None
    assert tf32_conflict("FP32", {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}) is None
    assert tf32_conflict("TF32", {"NVIDIA_TF32_OVERRIDE": "1"}) is None
    assert tf32_conflict("FP32", {"NVIDIA_TF32_OVERRIDE": "0"}) is None
    for name, value in (("FP32", "1"), ("AMP", "1"), ("TF32", "0")):
        message = tf32_conflict(name, {"NVIDIA_TF32_OVERRIDE": value})
        assert message is not None and "NVIDIA_TF32_OVERRIDE" in message


def test_grad_scaler() -> None:
    assert not make_grad_scaler("cpu", None).is_enabled()
    static = make_grad_scaler("cpu", 128)
    assert static.get_scale() == 128.0 and static.get_growth_interval() == 2**31 - 1
    dynamic = make_grad_scaler("cpu", "dynamic")
    assert dynamic.get_scale() == 65536.0 and dynamic.get_growth_interval() == 2000
    for bad in ("static", 0.0, -1.0):
        with pytest.raises(ConfigError, match="loss_scale"):
            make_grad_scaler("cpu", bad)


def test_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="float64"):
        torch_dtype("float64")
