"""What a platform's published runs ask of a machine: plain values, worked out without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from image_classification.config.catalogue import load_catalogue
from image_classification.config.resolve import resolve
from image_classification.config.schema import RunConfig
from image_classification.core.errors import ConfigError, UserError, unknown
from image_classification.core.types import DevicesFound

_IMAGENET_CLASSES = 1000
_IMAGENET_IMAGES = 1_281_167 + 50_000
# Path, label and where the path ends: columns of the index, shared with the workers.
_INDEX_BYTES_PER_IMAGE = len("train/n01440764/n01440764_10026.JPEG") + 8 + 8
# What the loader holds beyond the batches its workers prepare: the one in use, the one copied.
_BATCHES_HELD = 2
_TENSORS_PER_BATCH = 3
_OPTIMIZER_VALUES = {"sgd": 1, "rmsprop": 2}
OPEN_FILES_BASE = 256
"""Descriptors of a process before its loader: libraries, devices, sockets, logs."""


@dataclass(frozen=True)
class RunNeeds:
    """The most that any run of a platform asks for.

    num_devices: after fitting to what is there. loader_shm_bytes: 0 where the backend uses no
    processes. states: arguments of `image_classification.models.size.state_bytes`. kept: how
    many checkpoints stay beside the best; None: all. refused: why configurations of this platform
    cannot run here, by their names.
    """

    platform: str
    device: str
    device_name: str
    num_devices: int
    gpu_affinity: str
    backend: str
    data_path: str
    data_format: str
    num_classes: int
    loader_threads: int
    loader_shm_bytes: int
    open_files: int
    states: tuple[tuple[str, int, str, int, bool], ...]
    kept: int | None
    num_runs: int
    refused: dict[str, str]

    @property
    def is_on_dali(self) -> bool:
        """Whether the data backend is one of DALI's."""
        return self.backend.startswith("dali-")


def platform_needs(platform: str, found: DevicesFound | None, data: str | None) -> RunNeeds:
    """Resolve every training run of ``platform`` on the devices ``found`` (None: as published).

    Raises:
        ConfigError: no such platform, or none of its runs fits these devices.
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
        why = next(iter(refused.values()), f"{platform} has no configurations")
        raise ConfigError(why)
    return _most(platform, configs, refused)


def _most(platform: str, configs: Sequence[RunConfig], refused: dict[str, str]) -> RunNeeds:
    hungriest = max(configs, key=loader_shm_bytes)
    kept = [c.run.keep_checkpoints for c in configs]
    in_flight = max(c.data.workers * c.data.prefetch for c in configs)
    return RunNeeds(
        platform=platform,
        device=hungriest.platform.device,
        device_name=hungriest.platform.device_name,
        num_devices=hungriest.platform.num_devices,
        gpu_affinity=hungriest.platform.gpu_affinity,
        backend=hungriest.data.backend,
        data_path=hungriest.data.path,
        data_format=hungriest.data.format,
        num_classes=hungriest.model.num_classes,
        loader_threads=max(c.platform.num_devices * c.data.workers for c in configs),
        loader_shm_bytes=loader_shm_bytes(hungriest),
        open_files=OPEN_FILES_BASE + 2 * _TENSORS_PER_BATCH * in_flight,
        states=tuple({_state(c): None for c in configs}),
        kept=None if min(kept) < 0 else max(kept),
        num_runs=len(configs),
        refused=refused,
    )


def loader_shm_bytes(config: RunConfig) -> int:
    """Return how much of ``/dev/shm`` the loaders of one node's processes fill at most.

    Only loader processes use it: each prepares ``data.prefetch`` uint8 batches, and all share the
    index of the images, reckoned for ImageNet where the model has its number of classes.
    """
    data = config.data
    if data.backend != "pytorch" or data.workers == 0:
        return 0
    batch = config.batch.per_device_batch * 3 * data.image_size**2
    images = _IMAGENET_IMAGES if config.model.num_classes == _IMAGENET_CLASSES else 0
    a_process = (data.workers * data.prefetch + _BATCHES_HELD) * batch
    a_process += images * _INDEX_BYTES_PER_IMAGE
    return config.platform.num_devices * a_process


def _state(config: RunConfig) -> tuple[str, int, str, int, bool]:
    model = config.model
    values = _OPTIMIZER_VALUES[config.optim.name]
    has_average = config.ema.decay is not None
    return (model.name, model.num_classes, model.se_reduction, values, has_average)
