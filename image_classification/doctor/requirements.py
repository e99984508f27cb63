"""The ``platform`` check: what the published runs of a platform require of a machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from image_classification.config.catalogue import load_catalogue
from image_classification.config.resolve import resolve
from image_classification.config.schema import RunConfig
from image_classification.core.errors import ConfigError, UserError
from image_classification.core.program import command
from image_classification.core.types import DevicesFound
from image_classification.doctor.probe import ProbeError
from image_classification.doctor.report import CheckResult, fail, ok, skipped, warn

if TYPE_CHECKING:
    from image_classification.doctor.checks import Context

# Descriptors of a process without its loader: libraries, devices, sockets, logs.
_OPEN_FILES_BASE = 256
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
    open_files: int = _OPEN_FILES_BASE
    states: tuple[tuple[str, int, str, int, bool], ...] = ()
    kept: int | None = 1
    num_runs: int = 0
    refused: dict[str, str] = field(default_factory=dict)


def check_platform(context: Context) -> Iterator[CheckResult]:
    """Resolve the platform's runs on the devices found; later checks use what they need."""
    name = context.platform
    if name is None:
        yield skipped("platform", "none given: not compared with what a run requires")
        return
    remedy = f"choose another one: {command('launch')} --list platforms"
    device = str(context.platform_settings.get("platform.device"))
    found = None  # as published
    gpus = context.torch.gpus
    if device == "cuda" and gpus:
        capabilities = tuple("{}.{}".format(*gpu.capability) for gpu in gpus)
        found = DevicesFound("cuda", tuple(gpu.name for gpu in gpus), capabilities)
    try:
        if device not in ("cuda", "cpu"):
            context.probe(get_accelerator, device)
        needs = context.needs = platform_needs(name, found, context.data)
    except ProbeError as error:
        yield fail("platform", f"{name}: {error}", remedy)
        return
    except UserError as error:
        yield fail("platform", error.message, remedy)
        return
    devices = f"{needs.num_devices} x {needs.device_name or needs.device}"
    text = f"{name}: {needs.num_runs} configurations on {devices}, {needs.backend}"
    if needs.refused:
        run, why = next(iter(needs.refused.items()))
        text += f"; {len(needs.refused)} more cannot run here ({run}: {why})"
        yield warn("platform", text, "choose one of those that can, or other devices")
    else:
        yield ok("platform", text)
    context.largest_model, context.checkpoint_bytes = context.probe(largest_state, needs.states)


def get_accelerator(kind: str) -> None:
    """Probe: raise a ConfigError if this release does not support devices of ``kind``."""
    from image_classification.devices import accelerator

    accelerator.get_accelerator(kind)


def largest_state(states: tuple[tuple[str, int, str, int, bool], ...]) -> tuple[str, int]:
    """Probe: return model name and checkpoint size in bytes of the largest of `RunNeeds.states`."""
    from image_classification.models.size import largest_state_bytes

    return largest_state_bytes(list(states))


def platform_needs(platform: str, found: DevicesFound | None, data: str | None) -> RunNeeds:
    """Resolve every training run of ``platform`` on the devices ``found`` (None: as published).

    Raises:
        ConfigError: none of its runs fits these devices.
    """
    configs: list[RunConfig] = []
    refused: dict[str, str] = {}
    for model, on, precision in load_catalogue().entries:
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
        open_files=_OPEN_FILES_BASE + 2 * _TENSORS_PER_BATCH * prefetched_batches,
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
