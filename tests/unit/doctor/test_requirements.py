import pytest

from image_classification.config.catalogue import load_catalogue
from image_classification.config.resolve import resolve
from image_classification.core.errors import ConfigError
from image_classification.core.types import DevicesFound
from image_classification.doctor.requirements import (
    largest_state,
    loader_shm_bytes,
    platform_needs,
)


@pytest.mark.parametrize("platform", load_catalogue().platforms)
def test_every_platform_has_needs(platform: str) -> None:
    needs = platform_needs(platform, None, None)
    assert needs.num_runs > 0 and needs.states and needs.refused == {}
    assert (needs.loader_shm_bytes > 0) == (needs.backend == "pytorch")
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


def test_devices_that_no_run_fits() -> None:
    found = DevicesFound("cuda", ("Tesla V100-SXM2-16GB",) * 3, ("7.0",) * 3)
    with pytest.raises(ConfigError, match="global batch"):
        platform_needs("DGX1V", found, None)


def test_an_unknown_platform() -> None:
    with pytest.raises(ConfigError, match="DGX1V"):
        platform_needs("DGX1", None, None)


def test_the_largest_state_is_that_of_the_largest_checkpoint() -> None:
    states = [list(state) for state in platform_needs("DGX1V", None, None).states]
    name, num_bytes = largest_state(states)
    assert name == "se-resnext101-32x4d" and num_bytes > 2**28
