"""Every setting of a run: one frozen dataclass per section, with defaults, docs and constraints.

A setting is written as ``section.key`` in configs.yml and in ``--set``. The key is the field's
name, except ``batch.global`` and ``batch.per_device``, whose fields are `BatchConfig.global_batch`
and `BatchConfig.per_device_batch`. Units are in the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, get_type_hints

PRECISIONS = ("FP32", "TF32", "AMP", "BF16")
GPU_AFFINITY_MODES = (
    "none",
    "socket",
    "socket_single",
    "socket_single_unique",
    "socket_unique_interleaved",
    "socket_unique_continuous",
)
TRACKERS = ("tensorboard", "wandb", "mlflow")
MODES = (
    "convergence",
    "benchmark_training",
    "benchmark_training_short",
    "benchmark_inference",
    "benchmark_data",
    "evaluate",
)
FRACTION = {"min": 0.0, "max": 1.0}


def setting(default: Any, doc: str, **constraints: Any) -> Any:
    """Return a dataclass field for a setting; with ``...`` as default, configs.yml must set it.

    constraints: ``choices``, ``min``, ``max``, ``pattern`` (of the whole text), ``nonempty`` (of a
    list), ``computed`` (not settable), ``key`` (if it differs from the field's name),
    ``null_word`` (a text for null, which `placement` replaces by a number). They are enforced by
    `keys.Key`.
    """
    metadata = {"doc": doc, **constraints}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunNames:
    """The names that select a run."""

    model: str
    precision: str
    mode: str
    platform: str
    recipe: str


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and its initial weights."""

    name: str = setting(..., "name of the model")
    num_classes: int = setting(1000, "number of classes", min=1)
    memory_format: str = setting("nchw", "memory layout of activations", choices=("nchw", "nhwc"))
    init: str = setting(
        "fan_in",
        "mode of the Kaiming normal initialization of convolutions",
        choices=("fan_in", "fan_out"),
    )
    zero_init_last_gamma: bool = setting(
        False,
        "initialize the last batch-norm gamma of every residual block to 0 (arXiv:1706.02677)",
    )
    se_reduction: str = setting(
        "paper",
        "squeeze-and-excitation width: paper: channels / 16; fixed16: 16 units everywhere, as "
        "in the PyTorch source of the published runs",
        choices=("paper", "fixed16"),
    )
    pretrained_from_file: str | None = setting(
        None,
        "safetensors file with initial weights of the same model; for training on other classes "
        "all but the classifier's",
    )
    compile: bool = setting(False, "use torch.compile for the model in the training step")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set, preprocessing and augmentation. Sizes in pixels."""

    path: str = setting("/imagenet", "folder with train/ and val/, or 'demo', or 'synthetic'")
    backend: str = setting("pytorch", "data loader: pytorch, dali-cpu, dali-gpu or synthetic")
    format: str = setting(
        "auto",
        "format of the folder; auto: detect it",
        choices=("auto", "folder", "tfrecord", "recordio", "webdataset"),
    )
    val_fraction: float | None = setting(
        None,
        "fraction of each class held out for validation, in a folder of class folders without "
        "train/ and val/; null: 0.2, or all images to evaluate weights that were trained elsewhere",
        min=0.0,
        max=1.0,
    )
    split_file: str | None = setting(
        None,
        "file that lists the train and val images of such a folder; null: split.json in the "
        "folder, else computed by data.val_fraction",
    )
    exif_orientation: bool = setting(
        False, "turn images upright as EXIF says; on for your own images"
    )
    image_size: int = setting(224, "side length of training and validation crops", min=8)
    resize: int = setting(256, "size that validation images are resized to before the crop", min=8)
    resize_mode: str = setting(
        "short_side",
        "short_side: resize the short side, keep the aspect ratio; squash: resize both sides",
        choices=("short_side", "squash"),
    )
    interpolation: str = setting(
        "bilinear", "interpolation of resizing", choices=("bilinear", "bicubic", "nearest")
    )
    antialias: bool = setting(True, "low-pass filter before downscaling, as PIL does")
    crop_area_min: float = setting(0.08, "min area fraction of the random crop", min=0.0)
    crop_area_max: float = setting(1.0, "max area fraction of the random crop", min=0.0)
    crop_ratio_min: float = setting(3 / 4, "min aspect ratio of the random crop", min=0.0)
    crop_ratio_max: float = setting(4 / 3, "max aspect ratio of the random crop", min=0.0)
    hflip_prob: float = setting(0.5, "probability of a horizontal flip", **FRACTION)
    augmentation: str = setting(
        "none",
        "policy applied to training images after crop and flip (AutoAugment arXiv:1805.09501, "
        "RandAugment arXiv:1909.13719, TrivialAugment wide arXiv:2103.10158)",
        choices=("none", "autoaugment", "randaugment", "trivialaugment"),
    )
    augmentation_fill: int = setting(
        128, "gray value of pixels that the policy moves in from outside", min=0, max=255
    )
    randaugment_ops: int = setting(2, "operations per image (randaugment)", min=1, max=16)
    randaugment_magnitude: int = setting(
        9, "strength of the operations, of 31 levels (randaugment)", min=0, max=30
    )
    colour_jitter_brightness: float = setting(
        0.0, "x: scale brightness by a random factor in max(0, 1-x)..1+x; 0: off", min=0.0
    )
    colour_jitter_contrast: float = setting(
        0.0, "x: scale contrast by a random factor in max(0, 1-x)..1+x; 0: off", min=0.0
    )
    colour_jitter_saturation: float = setting(
        0.0, "x: scale saturation by a random factor in max(0, 1-x)..1+x; 0: off", min=0.0
    )
    colour_jitter_hue: float = setting(
        0.0,
        "x: shift hue by a random fraction of the color circle in -x..x; 0: off",
        min=0.0,
        max=0.5,
    )
    random_erasing: float = setting(
        0.0,
        "probability of filling a random rectangle with the mean color (arXiv:1708.04896)",
        **FRACTION,
    )
    mean: tuple[float, float, float] = setting(
        (0.485, 0.456, 0.406), "mean per channel, subtracted; images in 0..1"
    )
    std: tuple[float, float, float] = setting(
        (0.229, 0.224, 0.225), "standard deviation per channel, divided by; images in 0..1"
    )
    workers: int = setting(
        8,
        "loader processes per device (dali: threads); 0: load in the training process (dali: "
        "1 thread)",
        min=0,
    )
    prefetch: int = setting(
        2, "batches prepared ahead, per worker (dali: by all threads together)", min=1
    )
    hw_decoder_load: float = setting(
        0.65, "fraction of JPEGs decoded by the GPU's hardware decoder (dali-gpu)", **FRACTION
    )
    device_memory_padding_mib: int = setting(
        16, "GPU memory that each decoding thread allocates at the start (dali-gpu)", min=0
    )
    error_budget: float = setting(
        0.001,
        "max fraction of train images that may fail to decode before the run stops",
        **FRACTION,
    )
    synthetic_train_images: int = setting(1_281_167, "train images of 'synthetic'", min=1)
    synthetic_val_images: int = setting(50_000, "validation images of 'synthetic'", min=1)


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Batch sizes in images: accumulation = global / (per_device x number of processes)."""

    per_device_batch: int = setting(
        ..., "images per device per micro-batch", key="per_device", min=1
    )
    global_batch: int = setting(
        ..., "images per optimizer step over all devices", key="global", min=1
    )
    accumulation: int = setting(..., "micro-batches per optimizer step; computed", computed=True)
    fit_memory: bool = setting(
        False,
        "try a step before the run, and use a smaller per-device batch if the GPU's memory needs "
        "it; the global batch stays",
    )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer. The learning rate is never scaled automatically."""

    name: str = setting("sgd", "optimizer", choices=("sgd", "rmsprop"))
    lr: float = setting(..., "peak learning rate, for the global batch", min=0.0)
    momentum: float = setting(0.9, "momentum", **FRACTION)
    nesterov: bool = setting(False, "Nesterov momentum (sgd)")
    weight_decay: float = setting(..., "L2 penalty of the decayed parameters", min=0.0)
    decay_rule: str = setting(
        "no_norm_bias",
        "parameters with weight decay: no_norm_bias: neither normalization layers nor biases; "
        "legacy_bn_name: those without 'bn' in the name, as in the source of the published runs "
        "(downsample.1 and biases decay); all",
        choices=("no_norm_bias", "legacy_bn_name", "all"),
    )
    rmsprop_alpha: float = setting(0.9, "smoothing constant (rmsprop)", **FRACTION)
    rmsprop_eps: float = setting(1e-3, "epsilon (rmsprop)", min=0.0)
    implementation: str = setting(
        "torch",
        "torch: PyTorch's optimizer; apex: NVIDIA Apex's fused one (sgd on cuda)",
        choices=("torch", "apex"),
    )
    gradient_compression: str = setting(
        "none",
        "data type in which processes exchange gradients; changes results",
        choices=("none", "fp16", "bf16"),
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over time. Stopping a run early does not change it."""

    name: str = setting(
        "cosine",
        "shape after the warm-up",
        choices=("constant", "step", "cosine", "linear", "exponential", "polynomial", "list"),
    )
    epochs: int = setting(..., "length of the schedule", min=1)
    warmup_epochs: float = setting(
        0.0, "epochs of linear warm-up from 0, updated every step", min=0.0
    )
    end_lr: float = setting(0.0, "learning rate at the end of the schedule", min=0.0)
    power: float = setting(2.0, "exponent (polynomial)", min=0.0)
    milestone_epochs: tuple[float, ...] = setting(
        (30.0, 60.0, 80.0), "epochs at which the learning rate changes (step, list)", min=0.0
    )
    gamma: float = setting(0.1, "factor at each milestone (step)", min=0.0)
    milestone_lrs: tuple[float, ...] = setting(
        (), "learning rate from each milestone on (list)", min=0.0
    )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Softmax cross-entropy."""

    label_smoothing: float = setting(0.0, "probability spread over all classes", **FRACTION)


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Mixing of the images of a micro-batch, on the device."""

    mixup: float = setting(0.0, "alpha of mixup (arXiv:1710.09412); 0: off", min=0.0)
    cutmix: float = setting(0.0, "alpha of CutMix (arXiv:1905.04899); 0: off", min=0.0)


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the weights."""

    decay: float | None = setting(None, "decay per optimizer step; null: no average", **FRACTION)


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Arithmetic of the training step."""

    name: str = setting(..., "FP32, TF32, AMP or BF16", choices=PRECISIONS)
    dtype: str = setting(
        "float32",
        "autocast dtype; float32: no autocast",
        choices=("float32", "float16", "bfloat16"),
    )
    loss_scale: float | str | None = setting(
        None, "static loss scale, 'dynamic', or null: none (float16)"
    )
    amp_backend: str = setting(
        "torch",
        "torch: PyTorch's autocast; apex: NVIDIA Apex's amp at O1 (float16 on cuda)",
        choices=("torch", "apex"),
    )


@dataclass(frozen=True, kw_only=True)
class PlatformConfig:
    """The hardware of the run."""

    name: str = setting(..., "name of the platform")
    device: str = setting("cuda", "type of device", choices=("cuda", "cpu", "hpu", "xpu"))
    device_name: str = setting(
        "", "words that a device's name must contain for comparable throughput"
    )
    num_devices: int = setting(
        1,
        "devices per node, one process each; all: as many GPUs as are visible",
        min=1,
        null_word="all",
    )
    num_nodes: int = setting(1, "number of nodes", min=1)
    gpu_affinity: str = setting(
        "none", "CPU cores that each process is bound to", choices=GPU_AFFINITY_MODES
    )


@dataclass(frozen=True, kw_only=True)
class RunControl:
    """How the run proceeds; nothing here changes what an optimizer step computes."""

    mode: str = setting(..., "what the run does", choices=MODES)
    seed: int = setting(
        0, "seed of weights, sample order, augmentation and mixing", min=0, max=2**63 - 1
    )
    workspace: str | None = setting(None, "the run's folder; null: runs/<names>-<UTC time>")
    resume: str | None = setting(
        None, "checkpoint folder to resume from, or 'auto': the newest intact one"
    )
    checkpoint: str | None = setting(
        None,
        "which checkpoint of the run given to resume: best, last, or a step; null: best to "
        "evaluate, last to continue",
        pattern=r"best|last|[0-9]{1,18}",
    )
    allow_changes: bool = setting(
        False, "resume with other settings or other data; the differences are recorded"
    )
    stop_epoch: int | None = setting(None, "stop after this epoch", min=1)
    run_epochs: int | None = setting(
        None, "stop after this many epochs, counted from the start or the resume", min=1
    )
    max_steps: int | None = setting(None, "stop after this optimizer step", min=1)
    early_stopping_patience: int | None = setting(
        None, "stop after this many validations in a row without a better top-1", min=1
    )
    stop_at_top1: float | None = setting(
        None,
        "stop after the first validation with at least this top-1 in percent (of the weight "
        "average if ema.decay is set)",
        min=0.0,
        max=100.0,
    )
    validate: bool = setting(True, "validate after every epoch")
    topk: int = setting(5, "k of the additional top-k accuracy", min=1)
    save_checkpoints: bool = setting(True, "write checkpoints")
    save_every: str = setting(
        "1 epochs",
        "interval of checkpoints: 'N steps', 'N minutes' or 'N epochs'",
        pattern=r"[1-9][0-9]* (steps|minutes|epochs)",
    )
    checkpoint_name: str = setting(
        "step",
        "prefix of checkpoint folder names; the step number follows",
        pattern=r"[A-Za-z0-9_][A-Za-z0-9_.-]*",
    )
    keep_checkpoints: int = setting(
        1, "number of newest checkpoints to keep besides the best; -1: all", min=-1
    )
    on_save_error: str = setting(
        "stop",
        "if a checkpoint cannot be written: stop, or warn and retry at the next save",
        choices=("stop", "warn"),
    )
    max_skipped_steps_in_a_row: int = setting(
        25,
        "fp16 overflows in a row after which the run counts as diverged; each halves the loss "
        "scale",
        min=1,
        max=100,
    )
    log_every_steps: int = setting(20, "optimizer steps between log records", min=1)
    raport_file: str | None = setting(None, "file for additional records in DLLogger format")
    trackers: tuple[str, ...] = setting(
        (), "experiment trackers that receive the records", choices=TRACKERS
    )
    inference_batches: tuple[int, ...] = setting(
        (1, 2, 4, 8, 16, 32, 64, 128, 256),
        "batch sizes of benchmark_inference",
        min=1,
        nonempty=True,
    )
    inference_iterations: int = setting(100, "timed forward passes per batch size", min=1)
    benchmark_warmup_steps: int = setting(20, "steps before the measured window", min=0)
    max_restarts: int = setting(
        0,
        "how many times to restart all processes from the newest checkpoint after one fails",
        min=0,
        max=1000,
    )
    collective_timeout_s: float = setting(
        600.0,
        "seconds after which a process that does not respond to the others counts as lost",
        min=1.0,
        max=86_400.0,
    )
    deterministic: bool = setting(
        False, "use only kernels with reproducible results (slower on GPUs; CPU kernels always are)"
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The complete, resolved configuration of a run."""

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
    """``section.key`` -> where the value came from."""
    warnings: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    """Ids of the published runs that this configuration reproduces."""

    @property
    def world_size(self) -> int:
        """Number of processes: one per device on all nodes."""
        return self.platform.num_devices * self.platform.num_nodes


SECTIONS: dict[str, type] = {
    name: cls
    for name, cls in get_type_hints(RunConfig).items()
    if isinstance(cls, type) and is_dataclass(cls) and cls is not RunNames
}
"""The dataclass of each section, in the order of `RunConfig`."""
