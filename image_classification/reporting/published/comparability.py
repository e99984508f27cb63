"""What prevents the comparison of a run's figure with a published one."""

from __future__ import annotations

from image_classification.config.schema import RunConfig
from image_classification.core.types import DevicesFound
from image_classification.reporting.published.load import PublishedRow
from image_classification.reporting.report import Results

IMAGENET_VAL_IMAGES = 50_000
IMAGENET_CLASSES = 1000


def accuracy_obstacles(row: PublishedRow, config: RunConfig, results: Results) -> list[str]:
    """List what differs from the run that gave a published accuracy."""
    obstacles = _data_obstacles(config) + _shared_obstacles(row, config)
    if config.run.mode == "evaluate":
        obstacles.append("evaluation only: this run did not train the weights")
        return obstacles
    if config.model.pretrained_from_file is not None:
        obstacles.append("training started from pretrained weights")
    images = results.validation.images
    if images is not None and images != IMAGENET_VAL_IMAGES and not obstacles:
        obstacles.append(f"validated on {images:,} images, not ImageNet's {IMAGENET_VAL_IMAGES:,}")
    if row.epochs is None and row.elsewhere is None:
        obstacles.append("the source does not say how many epochs")
    elif row.epochs not in (None, config.schedule.epochs):
        obstacles.append(f"schedule of {config.schedule.epochs} epochs, published {row.epochs}")
    epochs = results.train.epochs
    if epochs is None or epochs < config.schedule.epochs:
        done = 0 if epochs is None else epochs
        obstacles.append(f"stopped after {done:g} of {config.schedule.epochs} epochs")
    if row.global_batch is not None and config.batch.global_batch != row.global_batch:
        obstacles.append(f"global batch {config.batch.global_batch}, published {row.global_batch}")
    if row.recipe.lr is not None and config.optim.lr != row.recipe.lr:
        obstacles.append(f"learning rate {config.optim.lr:g}, published {row.recipe.lr:g}")
    if row.recipe.mixup is not None and config.mixing.mixup != row.recipe.mixup:
        obstacles.append(f"mixup {config.mixing.mixup:g}, published {row.recipe.mixup:g}")
    for start in results.starts or ():
        if start.changes:
            changed = "; ".join(start.changes)
            obstacles.append(f"settings changed at step {start.step} ({changed})")
    return obstacles


def training_obstacles(row: PublishedRow, config: RunConfig, devices: DevicesFound) -> list[str]:
    """List what differs from the run that gave a published speed, power or memory."""
    obstacles = _data_obstacles(config) + _shared_obstacles(row, config)
    obstacles += _device_obstacles(row, config, devices)
    per_device = config.batch.per_device_batch
    if row.per_device_batch is not None and per_device != row.per_device_batch:
        obstacles.append(f"per-device batch {per_device}, published {row.per_device_batch}")
    return obstacles


def inference_obstacles(row: PublishedRow, config: RunConfig, devices: DevicesFound) -> list[str]:
    """List what differs from a published inference table; which images it is timed on does not."""
    return _shared_obstacles(row, config) + _device_obstacles(row, config, devices)


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
