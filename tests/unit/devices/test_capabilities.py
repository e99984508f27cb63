import pytest

from image_classification.devices.capabilities import build_lacks, cuda_lacks, tf32_conflict

V100, T4, A100, H200 = (7, 0), (7, 5), (8, 0), (9, 0)
CU128 = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "archs", "covered"),
    [
        (V100, CU128, True),
        (V100, CU130, False),
        ((8, 9), CU128, True),  # sm_86 machine code runs on 8.9
        ((8, 0), ["sm_86"], False),  # but not on an earlier minor
        ((10, 3), CU128, True),
        ((11, 0), CU128, False),  # no PTX to compile from
        ((13, 0), CU130, True),  # the driver compiles compute_120
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["sm_100f"], False),
        ((10, 3), ["compute_100f"], True),
        ((12, 0), ["compute_100f"], False),
        ((9, 0), ["gfx942"], False),
        ((9, 0), [], False),
    ],
)
def test_build_lacks(capability: tuple[int, int], archs: list[str], covered: bool) -> None:
    assert (build_lacks(capability, archs, "some GPU", "2.10.0") is None) is covered


def test_build_lacks_message() -> None:
    message = build_lacks(V100, CU130, "Tesla V100", "2.11.0+cu130")
    assert message is not None
    for part in ("2.11.0+cu130", "Tesla V100", "sm_70", "sm_75", "cu128"):
        assert part in message
    newer = build_lacks((11, 0), CU128, "Thor", "2.10.0+cu128")
    assert newer is not None and "sm_110" in newer and "cu128)" not in newer


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
def test_cuda_lacks(name: str, dtype: str, capability: tuple[int, int], has: bool) -> None:
    assert (cuda_lacks(name, dtype, capability, "some GPU") is None) is has


def test_cuda_lacks_message() -> None:
    message = cuda_lacks("TF32", "float32", V100, "Tesla V100-SXM2-16GB")
    assert message is not None
    for part in ("TF32", "8.0", "Ampere", "Tesla V100-SXM2-16GB", "7.0", "--precision AMP"):
        assert part in message


def test_tf32_conflict() -> None:
    assert tf32_conflict("FP32", {}) is None
    assert tf32_conflict("FP32", {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}) is None
    assert tf32_conflict("TF32", {"NVIDIA_TF32_OVERRIDE": "1"}) is None
    assert tf32_conflict("FP32", {"NVIDIA_TF32_OVERRIDE": "0"}) is None
    for name, value in (("FP32", "1"), ("AMP", "1"), ("TF32", "0")):
        message = tf32_conflict(name, {"NVIDIA_TF32_OVERRIDE": value})
        assert message is not None and "NVIDIA_TF32_OVERRIDE" in message
