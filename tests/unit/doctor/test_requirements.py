import pytest

from image_classification.config.catalogue import load_catalogue
from image_classification.config.resolve import resolve
from image_classification.core.types import DevicesFound
from image_classification.doctor.gpu import TorchGpu, TorchGpus
from image_classification.doctor.report import CheckResult
from image_classification.doctor.requirements import (
    check_platform,
    loader_shm_bytes,
    platform_needs,
)
from tests.support.doctor import context

V100 = TorchGpu("Tesla V100-SXM2-16GB", (7, 0))


@pytest.mark.parametrize("platform", load_catalogue().platforms)
def test_every_platform_has_needs(platform: str) -> None:
    needs = platform_needs(platform, None, None)
    assert needs.num_runs > 0 and needs.states and needs.refused == {}
    assert bool(needs.loader_shm_bytes) == (needs.backend == "pytorch")
    assert needs.open_files > 256 and needs.loader_threads > 0


def test_shared_memory_of_the_loader() -> None:
    overrides = {"data.workers": 3, "data.prefetch": 2, "batch.per_device": 5, "batch.global": 10}
    overrides |= {"platform.num_devices": 2, "data.image_size": 32}
    config = resolve("resnet18", "FP32", "convergence", "CPU", overrides=overrides)
    assert loader_shm_bytes(config) == 2 * (3 * 2 + 2) * 5 * 3 * 32 * 32
    none = resolve("resnet18", "FP32", "convergence", "CPU", overrides={"data.workers": 0})
    assert loader_shm_bytes(none) == 0


def test_the_index_of_imagenet_is_included() -> None:
    overrides = {"data.backend": "pytorch"}
    config = resolve("resnet50", "AMP", "convergence", "DGX1V", overrides=overrides)
    batches = 8 * (8 * 2 + 2) * config.batch.per_device_batch * 3 * 224**2
    index = loader_shm_bytes(config) - batches
    assert 8 * 60e6 < index < 8 * 80e6  # some 70 MB per process


def test_needs_are_those_of_the_devices_found() -> None:
    found = DevicesFound("cuda", ("Tesla V100-SXM2-16GB",) * 2, ("7.0",) * 2)
    assert platform_needs("DGX1V", found, None).num_devices == 2


def test_needs_with_other_data() -> None:
    assert platform_needs("DGX1V", None, "/mine").data_path == "/mine"
    assert platform_needs("CPU", None, "synthetic").loader_shm_bytes == 0


def run(platform: str | None, *gpus: TorchGpu) -> tuple[CheckResult, str]:
    """Return the result and the name of the platform's largest model."""
    doctor = context(platform=platform)
    doctor.torch = TorchGpus("2.10.0", "12.8", gpus)
    (check,) = check_platform(doctor)
    assert (doctor.checkpoint_bytes or 0) > 2**28 or not doctor.largest_model
    return check, doctor.largest_model


def test_platform() -> None:
    check, largest = run("DGX1V")
    assert check.status == "ok" and check.found.startswith("DGX1V: ")
    assert largest == "se-resnext101-32x4d"
    assert run(None)[0].status == "skipped"


def test_three_gpus_fit_no_run_of_the_published_batch_size() -> None:
    check, _ = run("DGX1V", V100, V100, V100)
    assert check.status == "fail" and "global batch" in check.found


def test_devices_without_support() -> None:
    check, _ = run("GAUDI")
    assert check.status == "fail" and "hpu" in check.found and "--list" in check.remedy
