"""How a setting is declared in the configuration's dataclasses.

The section ``data`` of a run's configuration; see `image_classification.config.schema`.

The frozen configuration of a run: one dataclass a section, units in names.

Every field is reachable as ``section.key`` from configs.yml and from ``--set``. The key is the
field's name unless its metadata says otherwise (``batch.global`` is `BatchConfig.global_batch`,
since ``global`` is a Python keyword). ``choices``, ``min`` and ``max`` in the metadata are
checked by `image_classification.config.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def setting(default: Any = ..., *, doc: str, **meta: Any) -> Any:
    """Return a dataclass field with its help text; without a default it must be given.

    meta: ``choices``, ``min``, ``max`` and the like, checked by
    `image_classification.config.checks`.
    """
    metadata = {"doc": doc, **meta}
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are and what is done to them. Sizes in pixels."""

    path: str = setting("/imagenet", doc="folder with train/ and val/, or 'demo', or 'synthetic'")
    backend: str = setting("pytorch", doc="registered data backend")
    format: str = setting(
        "auto",
        doc="how the folder holds the images; auto looks at what is there",
        choices=("auto", "folder", "tfrecord", "recordio", "webdataset"),
    )
    image_size: int = setting(224, doc="side of the training crop and the validation crop", min=8)
    resize: int = setting(256, doc="validation resize before the centre crop", min=8)
    resize_mode: str = setting(
        "short_side",
        doc="short_side keeps the aspect ratio; squash resizes to resize x resize",
        choices=("short_side", "squash"),
    )
    interpolation: str = setting(
        "bilinear", doc="resampling kernel", choices=("bilinear", "bicubic", "nearest")
    )
    antialias: bool = setting(True, doc="low-pass before downscaling, as PIL does")
    crop_area_min: float = setting(0.08, doc="least area share of the random crop", min=0.0)
    crop_area_max: float = setting(1.0, doc="largest area share of the random crop", min=0.0)
    crop_ratio_min: float = setting(3 / 4, doc="least width/height of the random crop", min=0.0)
    crop_ratio_max: float = setting(4 / 3, doc="largest width/height of the random crop", min=0.0)
    hflip_prob: float = setting(0.5, doc="probability of a horizontal flip", min=0.0, max=1.0)
    augmentation: str = setting(
        "none",
        doc="policy applied to the training images after crop and flip (AutoAugment "
        "arXiv:1805.09501, RandAugment arXiv:1909.13719, TrivialAugment wide arXiv:2103.10158)",
        choices=("none", "autoaugment", "randaugment", "trivialaugment"),
    )
    augmentation_fill: int = setting(
        128, doc="grey value the policy fills with where it moves the image away", min=0, max=255
    )
    randaugment_ops: int = setting(2, doc="operations an image (randaugment only)", min=1, max=16)
    randaugment_magnitude: int = setting(
        9, doc="strength of the operations, of 31 steps (randaugment only)", min=0, max=30
    )
    colour_jitter_brightness: float = setting(
        0.0, doc="x: brightness times a factor in max(0, 1-x)..1+x; 0: off", min=0.0
    )
    colour_jitter_contrast: float = setting(
        0.0, doc="x: contrast times a factor in max(0, 1-x)..1+x; 0: off", min=0.0
    )
    colour_jitter_saturation: float = setting(
        0.0, doc="x: saturation times a factor in max(0, 1-x)..1+x; 0: off", min=0.0
    )
    colour_jitter_hue: float = setting(
        0.0, doc="x: hue turned by a share of the circle in -x..x; 0: off", min=0.0, max=0.5
    )
    random_erasing: float = setting(
        0.0,
        doc="probability of filling a random rectangle with the mean colour (arXiv:1708.04896)",
        min=0.0,
        max=1.0,
    )
    mean: tuple[float, float, float] = setting(
        (0.485, 0.456, 0.406), doc="per-channel mean of images in 0..1, subtracted"
    )
    std: tuple[float, float, float] = setting(
        (0.229, 0.224, 0.225), doc="per-channel deviation of images in 0..1, divided by"
    )
    workers: int = setting(
        8,
        doc="loader processes (dali: threads) a device; 0: none but the run's own (dali: 1)",
        min=0,
    )
    prefetch: int = setting(
        2, doc="batches prepared ahead: by each worker, or (dali) by all together", min=1
    )
    hw_decoder_load: float = setting(
        0.65,
        doc="share of the JPEGs given to the GPU's hardware decoder (dali-gpu only)",
        min=0.0,
        max=1.0,
    )
    device_memory_padding_mib: int = setting(
        16, doc="GPU memory a decoding thread takes at the start (dali-gpu only)", min=0
    )
    error_budget: float = setting(
        0.001,
        doc="share of the train images that may fail to decode before the run ends",
        min=0.0,
        max=1.0,
    )
    synthetic_train_images: int = setting(1_281_167, doc="train images of 'synthetic'", min=1)
    synthetic_val_images: int = setting(50_000, doc="validation images of 'synthetic'", min=1)


DataConfig = DataConfig

PRECISIONS = ("FP32", "TF32", "AMP", "BF16")
TRACKERS = ("tensorboard", "wandb", "mlflow")
MODES = (
    "convergence",
    "benchmark_training",
    "benchmark_training_short",
    "benchmark_inference",
    "benchmark_data",
    "evaluate",
)


@dataclass(frozen=True)
class RunNames:
    """The names a run was asked for by."""

    model: str
    precision: str
    mode: str
    platform: str
    recipe: str


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and how its weights start."""

    name: str = setting(doc="registered model name")
    num_classes: int = setting(1000, doc="width of the classifier", min=1)
    memory_format: str = setting("nchw", doc="layout of activations", choices=("nchw", "nhwc"))
    init: str = setting(
        "fan_in",
        doc="mode of the convolutions' kaiming-normal initialisation",
        choices=("fan_in", "fan_out"),
    )
    zero_init_last_gamma: bool = setting(
        False, doc="start every residual block's last BN gamma at zero (arXiv:1706.02677)"
    )
    se_reduction: str = setting(
        "paper",
        doc="squeeze width: the paper's channels/16, or a constant 16 units as the PyTorch "
        "predecessor has it",
        choices=("paper", "fixed16"),
    )
    pretrained_from_file: str | None = setting(
        None, doc="safetensors file the weights start from; strict: every tensor must match"
    )
    compile: bool = setting(False, doc="torch.compile the training step's model")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Batch arithmetic: accumulation = global / (per_device x world), a positive integer."""

    per_device_batch: int = setting(doc="images a device a micro-batch", key="per_device", min=1)
    global_batch: int = setting(doc="images an optimizer step, all devices", key="global", min=1)
    accumulation: int = setting(doc="micro-batches an optimizer step; computed", computed=True)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer. lr is the peak value at the global batch; never rescaled silently."""

    name: str = setting("sgd", doc="registered optimizer", choices=("sgd", "rmsprop"))
    lr: float = setting(doc="peak learning rate at the global batch", min=0.0)
    momentum: float = setting(0.9, doc="momentum", min=0.0, max=1.0)
    nesterov: bool = setting(False, doc="Nesterov momentum (sgd only)")
    weight_decay: float = setting(doc="L2 added to the gradient of the decayed parameters", min=0.0)
    decay_rule: str = setting(
        "no_norm_bias",
        doc="which parameters decay: by module type; the predecessor's rule (all whose name has "
        "no 'bn', so downsample.1 and biases decay); or all",
        choices=("no_norm_bias", "legacy_bn_name", "all"),
    )
    rmsprop_alpha: float = setting(0.9, doc="rmsprop smoothing", min=0.0, max=1.0)
    rmsprop_eps: float = setting(1e-3, doc="rmsprop epsilon", min=0.0)
    implementation: str = setting(
        "torch",
        doc="whose optimizer: torch's, or NVIDIA Apex's fused one (sgd on cuda only)",
        choices=("torch", "apex"),
    )
    gradient_compression: str = setting(
        "none",
        doc="number format in which processes exchange gradients; changes what is learnt",
        choices=("none", "fp16", "bf16"),
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over time. Its length never follows the stopping point."""

    name: str = setting(
        "cosine",
        doc="shape after the warm-up",
        choices=("constant", "step", "cosine", "linear", "exponential", "polynomial", "list"),
    )
    epochs: int = setting(doc="length of the schedule", min=1)
    warmup_epochs: float = setting(0.0, doc="linear warm-up from 0, per iteration", min=0.0)
    end_lr: float = setting(0.0, doc="value at the end", min=0.0)
    power: float = setting(2.0, doc="exponent of 'polynomial'", min=0.0)
    milestone_epochs: tuple[float, ...] = setting(
        (30.0, 60.0, 80.0), doc="where 'step' and 'list' change", min=0.0
    )
    gamma: float = setting(0.1, doc="factor of 'step' at each milestone", min=0.0)
    milestone_lrs: tuple[float, ...] = setting(
        (), doc="values of 'list' from each milestone on", min=0.0
    )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Softmax cross-entropy."""

    label_smoothing: float = setting(0.0, doc="mass spread over all classes", min=0.0, max=1.0)


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Mixing of images within a micro-batch, on the device."""

    mixup: float = setting(0.0, doc="alpha of mixup's Beta (arXiv:1710.09412); 0: off", min=0.0)
    cutmix: float = setting(0.0, doc="alpha of CutMix's Beta (arXiv:1905.04899); 0: off", min=0.0)


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the weights."""

    decay: float | None = setting(None, doc="decay an optimizer step; null: off", min=0.0, max=1.0)


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Arithmetic of the training step."""

    name: str = setting(doc="FP32, TF32, AMP or BF16", choices=PRECISIONS)
    dtype: str = setting(
        "float32",
        doc="autocast dtype; float32: no autocast",
        choices=("float32", "float16", "bfloat16"),
    )
    loss_scale: float | str | None = setting(
        None, doc="static scale, 'dynamic', or null; only with float16"
    )
    amp_backend: str = setting(
        "torch",
        doc="whose mixed precision: torch's autocast, or NVIDIA Apex's amp at O1 (float16 on cuda)",
        choices=("torch", "apex"),
    )


@dataclass(frozen=True, kw_only=True)
class PlatformConfig:
    """The hardware a run was published on, or is to run on."""

    name: str = setting(doc="platform name")
    device: str = setting("cuda", doc="device kind", choices=("cuda", "cpu", "hpu", "xpu"))
    device_name: str = setting("", doc="what the device's own name must hold to be comparable")
    num_devices: int = setting(1, doc="devices a node, one process each", min=1)
    num_nodes: int = setting(1, doc="machines", min=1)
    gpu_affinity: str = setting(
        "none",
        doc="CPU cores of each process",
        choices=(
            "none",
            "socket",
            "socket_single",
            "socket_single_unique",
            "socket_unique_interleaved",
            "socket_unique_continuous",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class RunControl:
    """How a run is driven; nothing here changes what is learnt in a step."""

    mode: str = setting(doc="what to do", choices=MODES)
    seed: int = setting(
        0, doc="of weights, sample order, augmentation and mixing", min=0, max=2**63 - 1
    )
    workspace: str | None = setting(None, doc="the run's folder; null: runs/<names>-<UTC time>")
    resume: str | None = setting(None, doc="checkpoint folder, or 'auto': the newest good one")
    allow_changes: bool = setting(
        False, doc="resume under other settings or on other data; the differences are recorded"
    )
    stop_epoch: int | None = setting(None, doc="stop after this many epochs", min=1)
    run_epochs: int | None = setting(None, doc="stop after this many epochs from here on", min=1)
    max_steps: int | None = setting(None, doc="stop at this optimizer step", min=1)
    early_stopping_patience: int | None = setting(
        None, doc="stop after this many validations without a better top-1", min=1
    )
    stop_at_top1: float | None = setting(
        None,
        doc="stop after the first validation whose top-1 (the average's, where there is one) "
        "reaches this many percent",
        min=0.0,
        max=100.0,
    )
    validate: bool = setting(True, doc="evaluate after each epoch")
    topk: int = setting(5, doc="the k of top-k", min=1)
    save_checkpoints: bool = setting(True, doc="write checkpoints")
    save_every: str = setting(
        "1 epochs",
        doc="'N steps', 'N minutes' or 'N epochs'",
        pattern=r"[1-9][0-9]* (steps|minutes|epochs)",
    )
    checkpoint_name: str = setting(
        "step",
        doc="what the names of checkpoint folders start with; their step follows",
        pattern=r"[A-Za-z0-9_][A-Za-z0-9_.-]*",
    )
    keep_checkpoints: int = setting(
        1, doc="how many of the newest to keep beside the best; -1: all", min=-1
    )
    on_save_error: str = setting(
        "stop",
        doc="when a checkpoint cannot be written: stop, or warn and try again at the next save",
        choices=("stop", "warn"),
    )
    max_skipped_steps_in_a_row: int = setting(
        25,
        doc="fp16 overflows in a row that end the run as diverged; each halves the loss scale",
        min=1,
        max=100,
    )
    log_every_steps: int = setting(20, doc="optimizer steps between records", min=1)
    raport_file: str | None = setting(None, doc="DLLogger lines go to this file as well")
    trackers: tuple[str, ...] = setting(
        (), doc="experiment trackers the records go to as well", choices=TRACKERS
    )
    inference_batches: tuple[int, ...] = setting(
        (1, 2, 4, 8, 16, 32, 64, 128, 256),
        doc="batch sizes of benchmark_inference",
        min=1,
        nonempty=True,
    )
    inference_iterations: int = setting(100, doc="timed forward passes a batch size", min=1)
    benchmark_warmup_steps: int = setting(20, doc="steps before the measured window", min=0)
    max_restarts: int = setting(
        0,
        doc="how often all processes are started again, from the newest checkpoint, after one "
        "has died",
        min=0,
        max=1000,
    )
    collective_timeout_s: float = setting(
        600.0,
        doc="seconds after which a process that does not answer the others counts as lost",
        min=1.0,
        max=86_400.0,
    )
    deterministic: bool = setting(
        False,
        doc="refuse kernels whose result varies from run to run (slower on a GPU; the CPU's "
        "do not)",
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run needs, resolved; nothing rereads YAML after this."""

    names: RunNames
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    loss: LossConfig
    mixing: MixingConfig
    ema: EmaConfig
    precision: PrecisionConfig
    platform: PlatformConfig
    run: RunControl
    provenance: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    """Ids of the published runs this configuration rests on."""

    @property
    def world_size(self) -> int:
        """Processes of the run: one a device, over all nodes."""
        return self.platform.num_devices * self.platform.num_nodes


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "batch": BatchConfig,
    "optim": OptimConfig,
    "schedule": ScheduleConfig,
    "loss": LossConfig,
    "mixing": MixingConfig,
    "ema": EmaConfig,
    "precision": PrecisionConfig,
    "platform": PlatformConfig,
    "run": RunControl,
}
