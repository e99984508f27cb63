import pytest
import torch

from image_classification.devices.affinity import MODES
from image_classification.devices.architectures import build_lacks
from image_classification.doctor.gpu import (
    Gpu,
    TorchGpus,
    affinity_modes,
    check_affinity,
    check_devices,
    check_kernels,
    look,
)

V100 = Gpu("Tesla V100-SXM2-16GB", (7, 0))
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0))


def seen(*gpus: Gpu, cuda: str | None = "12.8") -> TorchGpus:
    return TorchGpus("2.10.0", cuda, ("sm_70", "sm_90"), gpus)


def test_looking_at_this_machine() -> None:
    found = look()
    assert found.torch == torch.__version__ and found.cuda == torch.version.cuda
    assert len(found.gpus) == torch.cuda.device_count()
    assert not any(gpu.error or gpu.lacks for gpu in found.gpus)


@pytest.mark.parametrize(
    ("gpus", "status", "words"),
    [
        ((V100,) * 8, "ok", "8 x Tesla V100"),
        ((V100,) * 9, "ok", "8 are used"),
        ((V100,) * 4, "warn", "the platform has 8"),
        ((H100,) * 8, "warn", "the platform's are V100-SXM2-16GB"),
        ((), "fail", "torch sees no GPU"),
    ],
)
def test_devices_against_a_platform(gpus: tuple[Gpu, ...], status: str, words: str) -> None:
    check = check_devices(seen(*gpus), "V100-SXM2-16GB", 8)
    assert check.status == status and words in check.found


def test_no_gpu_is_fine_where_none_is_asked_for() -> None:
    assert check_devices(seen(), None, None).status == "skipped"
    assert check_devices(seen(V100), None, None).found == "1 x Tesla V100-SXM2-16GB"


def test_the_remedy_for_no_gpu_fits_its_cause() -> None:
    assert "--gpus all" in check_devices(seen(), "V100", 1).remedy
    assert "torch with CUDA" in check_devices(seen(cuda=None), "V100", 1).remedy
    assert "driver 580" in check_devices(seen(), "V100", 1, "install driver 580").remedy


def test_kernels() -> None:
    assert check_kernels(seen()).status == "skipped"
    fine = check_kernels(seen(V100, H100))
    assert fine.status == "ok" and "sm_70 sm_90" in fine.found


def test_an_architecture_that_the_build_lacks() -> None:
    lacks = build_lacks((7, 0), ("sm_75", "sm_90"), "Tesla V100", "2.12.0")
    assert lacks is not None
    check = check_kernels(seen(Gpu("Tesla V100", (7, 0), lacks=lacks)))
    assert check.status == "fail" and "no kernels for Tesla V100 (sm_70)" in check.found
    assert "torch 2.10 (cu128)" in check.remedy


def test_a_kernel_that_fails_or_is_wrong() -> None:
    broken = Gpu("Tesla V100", (7, 0), error="CUDA error: uncorrectable ECC error encountered")
    check = check_kernels(seen(V100, broken))
    assert check.status == "fail" and check.found.startswith("GPU 1 Tesla V100: CUDA error")


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU here")
def test_affinity_without_gpus_says_why_for_every_mode() -> None:
    answers = affinity_modes(2)
    assert list(answers) == [mode for mode in MODES if mode != "none"]
    check = check_affinity(answers, "none")
    assert check.status == "warn" and check.remedy == "use --gpu-affinity none"
    assert check_affinity(answers, "socket").status == "fail"


def test_affinity() -> None:
    answers = {"socket": "", "socket_single_unique": "no CPU core near GPU 1 is left; use none"}
    assert check_affinity(answers, "none").found.endswith("usable: socket")
    assert check_affinity(answers, "socket").status == "ok"
    refused = check_affinity(answers, "socket_single_unique")
    assert refused.status == "fail" and refused.remedy == "use none"
