"""What the published runs of a platform require of a machine, computed without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from image_classification.config.catalogue import load_catalogue
from image_classification.config.resolve import resolve
from image_classification.config.schema import RunConfig
from image_classification.core.errors import ConfigError, UserError, unknown
from image_classification.core.types import DevicesFound

OPEN_FILES_BASE = 256
"""Descriptors of a process without its loader: libraries, devices, sockets, logs."""
_IMAGENET_CLASSES = 1000
_IMAGENET_IMAGES = 1_281_167 + 50_000
# Path, label and end of the path: columns of the index, which the loader workers share.
_INDEX_BYTES_PER_IMAGE = len("train/n01440764/n01440764_10026.JPEG") + 8 + 8
# Beyond the batches that the workers prepare: the one in use and the one being copied.
_EXTRA_BATCHES = 2
_TENSORS_PER_BATCH = 3
_OPTIMIZER_VALUES = {"sgd": 1, "rmsprop": 2}


@dataclass(frozen=True)
class RunNeeds:
    """The most that any run of a platform requires; the defaults are for no platform.

    num_devices: after fitting to the devices found. num_classes, data_path: None if unknown.
    loader_shm_bytes: 0 if the backend uses no processes, None without a platform. states: arguments
    of `image_classification.models.size.state_bytes`. kept: number of checkpoints kept beside the
    best; None: all. refused: configuration -> why it cannot run here.
    """

    platform: str = ""
    device: str = ""
    device_name: str = ""
    num_devices: int = 1
    gpu_affinity: str = "none"
    backend: str = ""
    data_path: str | None = None
    data_format: str = "auto"
    num_classes: int | None = None
    loader_threads: int = 0
    loader_shm_bytes: int | None = None
    open_files: int = OPEN_FILES_BASE
    states: tuple[tuple[str, int, str, int, bool], ...] = ()
    kept: int | None = 1
    num_runs: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def is_on_dali(self) -> bool:
        """Whether the data backend is one of DALI's."""
        return self.backend.startswith("dali-")


def platform_needs(platform: str, found: DevicesFound | None, data: str | None) -> RunNeeds:
    """Resolve every training run of ``platform`` on the devices ``found`` (None: as published).

    Raises:
        ConfigError: there is no such platform, or none of its runs fits these devices.
    """
    catalogue = load_catalogue()
    if platform not in catalogue.platforms:
        raise ConfigError(unknown("platform", platform, catalogue.platforms))
    configs: list[RunConfig] = []
    refused: dict[str, str] = {}
    for model, on, precision in catalogue.entries:
        if on != platform:
            continue
        try:
            configs.append(resolve(model, precision, "convergence", on, data=data, available=found))
        except UserError as error:
            refused[f"{model} {precision}"] = error.message
    if not configs:
        raise ConfigError(next(iter(refused.values()), f"{platform} has no configurations"))
    largest = max(configs, key=loader_shm_bytes)
    kept = [c.run.keep_checkpoints for c in configs]
    prefetched_batches = max(c.data.workers * c.data.prefetch for c in configs)
    return RunNeeds(
        platform=platform,
        device=largest.platform.device,
        device_name=largest.platform.device_name,
        num_devices=largest.platform.num_devices,
        gpu_affinity=largest.platform.gpu_affinity,
        backend=largest.data.backend,
        data_path=largest.data.path,
        data_format=largest.data.format,
        num_classes=largest.model.num_classes,
        loader_threads=max(c.platform.num_devices * c.data.workers for c in configs),
        loader_shm_bytes=loader_shm_bytes(largest),
        open_files=OPEN_FILES_BASE + 2 * _TENSORS_PER_BATCH * prefetched_batches,
        states=tuple({_state(c): None for c in configs}),
        kept=None if min(kept) < 0 else max(kept),
        num_runs=len(configs),
        refused=refused,
    )


def loader_shm_bytes(config: RunConfig) -> int:
    """Return how much of ``/dev/shm`` the loaders of one node's processes fill at most.

    Only loader processes use it: each prepares ``data.prefetch`` uint8 batches, and all share the
    index of the images, whose size is that of ImageNet if the model has its number of classes.
    """
    data = config.data
    if data.backend != "pytorch" or data.workers == 0:
        return 0
    batch_bytes = config.batch.per_device_batch * 3 * data.image_size**2
    images = _IMAGENET_IMAGES if config.model.num_classes == _IMAGENET_CLASSES else 0
    process_bytes = (data.workers * data.prefetch + _EXTRA_BATCHES) * batch_bytes
    process_bytes += images * _INDEX_BYTES_PER_IMAGE
    return config.platform.num_devices * process_bytes


def _state(config: RunConfig) -> tuple[str, int, str, int, bool]:
    model = config.model
    values = _OPTIMIZER_VALUES[config.optim.name]
    has_average = config.ema.decay is not None
    return (model.name, model.num_classes, model.se_reduction, values, has_average)


def largest_state(states: list[list[Any]]) -> tuple[str, int]:
    """Probe: return model name and checkpoint size in bytes of the largest of `RunNeeds.states`."""
    from image_classification.models.size import largest_state_bytes

    return largest_state_bytes([tuple(state) for state in states])
