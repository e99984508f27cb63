"""What prevents the comparison of a run's figure with a published one."""

from __future__ import annotations

from image_classification.config.schema import RunConfig
from image_classification.core.types import DevicesFound
from image_classification.core.units import counted
from image_classification.reporting.figures import ACCURACY, INFERENCE
from image_classification.reporting.published.load import PublishedRow
from image_classification.reporting.report import Results

IMAGENET_VAL_IMAGES = 50_000
IMAGENET_CLASSES = 1000


def obstacles_of(
    row: PublishedRow, config: RunConfig, results: Results, devices: DevicesFound
) -> list[str]:
    """List what differs from the run that gave the published figure.

    devices: those found on this node.
    """
    if row.figure in ACCURACY:
        return _accuracy_obstacles(row, config, results)
    # Latency does not depend on which images it is measured with.
    obstacles = [] if row.figure in INFERENCE else _data_obstacles(config)
    obstacles += _shared_obstacles(row, config) + _device_obstacles(row, config, devices)
    per_device, published = config.batch.per_device_batch, row.recipe.per_device_batch
    if row.figure not in INFERENCE and published not in (None, per_device):
        obstacles.append(f"per-device batch {per_device}, published {published}")
    return obstacles


def _accuracy_obstacles(row: PublishedRow, config: RunConfig, results: Results) -> list[str]:
    obstacles = _data_obstacles(config) + _shared_obstacles(row, config)
    if config.run.mode == "evaluate":
        return [*obstacles, "evaluation only: this run did not train the weights"]
    if config.model.pretrained_from_file is not None:
        obstacles.append("training started from pretrained weights")
    images = results.validation.images
    if images is not None and images != IMAGENET_VAL_IMAGES and not obstacles:
        obstacles.append(f"validated on {images:,} images, not ImageNet's {IMAGENET_VAL_IMAGES:,}")
    if row.epochs is None and row.elsewhere is None:
        obstacles.append("the source does not say how many epochs")
    elif row.epochs not in (None, config.schedule.epochs):
        obstacles.append(
            f"schedule of {counted(config.schedule.epochs, 'epoch')}, published {row.epochs}"
        )
    epochs = results.train.epochs or 0
    if epochs < config.schedule.epochs:
        obstacles.append(f"stopped after {epochs:g} of {config.schedule.epochs} epochs")
    for name, value, published in (
        ("global batch", config.batch.global_batch, row.global_batch),
        ("learning rate", config.optim.lr, row.recipe.lr),
        ("mixup", config.mixing.mixup, row.recipe.mixup),
    ):
        if published not in (None, value):
            obstacles.append(f"{name} {value:g}, published {published:g}")
    for start in results.starts or ():
        if start.changes:
            changed = "; ".join(start.changes)
            obstacles.append(f"settings changed at step {start.step} ({changed})")
    return obstacles


def _data_obstacles(config: RunConfig) -> list[str]:
    if config.data.path == "synthetic" or config.data.backend == "synthetic":
        return ["synthetic data, not ImageNet"]
    if config.data.path == "demo":
        return ["demo data set, not ImageNet"]
    return []


def _shared_obstacles(row: PublishedRow, config: RunConfig) -> list[str]:
    obstacles = []
    if config.model.name != row.model:
        obstacles.append(f"model {config.model.name}, published for {row.model}")
    if config.model.num_classes != IMAGENET_CLASSES:
        obstacles.append(f"{config.model.num_classes} classes, not {IMAGENET_CLASSES}")
    if config.names.precision != row.precision:
        obstacles.append(f"precision {config.names.precision}, published in {row.precision}")
    if config.platform.device != row.hardware.device:
        obstacles.append(f"ran on {config.platform.device}, published on {row.hardware.name}")
    if row.elsewhere is not None:
        obstacles.append(f"the settings behind this figure of {row.elsewhere} are not recorded")
    return obstacles


def _device_obstacles(row: PublishedRow, config: RunConfig, devices: DevicesFound) -> list[str]:
    obstacles = []
    wanted = (row.hardware.device_name or "").casefold()
    others = sorted({name for name in devices.names if wanted not in name.casefold()})
    if devices.kind == row.hardware.device and (others or not devices.names):
        found = ", ".join(others) or "no device"
        obstacles.append(f"ran on {found}, published on {row.hardware.name}")
    if config.world_size != row.num_devices:
        published = "an unknown number" if row.num_devices is None else row.num_devices
        obstacles.append(f"{config.world_size} devices, published with {published}")
    return obstacles
