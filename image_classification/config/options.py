"""The published command lines' options: option -> setting, with conversion and help.

Names and meanings are those of NVIDIA DeepLearningExamples' ConvNets ``launch.py`` and ``main.py``.
Two tables list options with another meaning, or none, in some modes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from image_classification.config.keys import KEYS, Override, clipped, whole_number
from image_classification.core.errors import ConfigError, nearest


@dataclass(frozen=True)
class Option:
    """One option.

    flags: its spellings. key: the setting. constant: the value of an option without an argument.
    convert: (text, option name) -> value, where the published meaning is not the key's own.
    """

    flags: tuple[str, ...]
    key: str
    help: str
    metavar: str = ""
    constant: Any = None
    convert: Callable[[str, str], Any] | None = None

    @property
    def name(self) -> str:
        """The first long spelling, used in messages."""
        return next(flag for flag in self.flags if flag.startswith("--"))

    @property
    def takes_value(self) -> bool:
        """Whether an argument follows the option."""
        return self.constant is None


def _parse_int(text: str, option: str) -> int:
    number = whole_number(text.strip())
    if number is None:
        raise ConfigError(f"{option} must be a whole number, got {clipped(text)}")
    return number


def _unlimited(key: str) -> Callable[[str, str], Any]:
    """Return the conversion of a count for which -1 means no limit (null)."""

    def convert(text: str, option: str) -> Any:
        value = _parse_int(text, option)
        return None if value == -1 else KEYS[key].check(value, option)

    return convert


def _keep_checkpoints(text: str, option: str) -> int:
    """Convert --gather-checkpoints: 0 keeps the best and the last, -1 keeps all."""
    value = _parse_int(text, option)
    if value < -1:
        raise ConfigError(f"{option} must be -1 or more, got {value}; -1 keeps all")
    checked: int = KEYS["run.keep_checkpoints"].check(value, option)
    return checked if checked == -1 else max(checked, 1)


def _save_every(text: str, option: str) -> str:
    count, _, unit = text.strip().partition(" ")
    plural = unit.strip().rstrip("s") + "s"
    return str(KEYS["run.save_every"].check(f"{count} {plural}", option))


def _init(text: str, option: str) -> str:
    modes = {"fanin": "fan_in", "fanout": "fan_out"}
    if text in modes:
        return modes[text]
    hint = nearest(text, modes)
    meant = f"; did you mean {hint!r}?" if hint else ""
    raise ConfigError(f"{option} cannot be {text!r}{meant} (valid: {', '.join(modes)})")


def _backend(text: str, option: str) -> str:
    # NVIDIA's own configuration file has the spelling "syntetic".
    return "synthetic" if text == "syntetic" else text


OPTIONS: tuple[Option, ...] = (
    Option(("--data-backend",), "data.backend", "data loader", "NAME", convert=_backend),
    Option(("--interpolation",), "data.interpolation", "interpolation of resizing", "NAME"),
    Option(("--workers", "-j"), "data.workers", "loader processes per device", "N"),
    Option(("--prefetch",), "data.prefetch", "batches each worker prepares ahead", "N"),
    Option(("--epochs",), "schedule.epochs", "length of the learning-rate schedule", "N"),
    Option(
        ("--run-epochs",),
        "run.run_epochs",
        "stop after N more epochs, with the schedule unchanged; -1: no limit",
        "N",
        convert=_unlimited("run.run_epochs"),
    ),
    Option(
        ("--early-stopping-patience",),
        "run.early_stopping_patience",
        "stop after N validations without a better top-1; -1: off",
        "N",
        convert=_unlimited("run.early_stopping_patience"),
    ),
    Option(("--image-size",), "data.image_size", "side length of crops in pixels", "N"),
    Option(
        ("--batch-size", "-b", "--batch_size"),
        "batch.per_device",
        "images per device per micro-batch",
        "N",
    ),
    Option(
        ("--optimizer-batch-size",),
        "batch.global",
        "images per optimizer step over all devices; -1: no accumulation",
        "N",
        convert=_unlimited("batch.global"),
    ),
    Option(
        ("--lr", "--learning-rate", "--learning_rate"),
        "optim.lr",
        "peak learning rate, for the global batch",
        "LR",
    ),
    Option(("--lr-schedule",), "schedule.name", "shape of the learning-rate schedule", "NAME"),
    Option(("--end-lr",), "schedule.end_lr", "learning rate at the end of the schedule", "LR"),
    Option(("--warmup",), "schedule.warmup_epochs", "epochs of linear warm-up", "E"),
    Option(("--label-smoothing",), "loss.label_smoothing", "label smoothing", "S"),
    Option(("--mixup",), "mixing.mixup", "alpha of mixup; 0: off", "ALPHA"),
    Option(("--optimizer",), "optim.name", "optimizer", "NAME"),
    Option(("--momentum", "--mom"), "optim.momentum", "momentum", "M"),
    Option(("--weight-decay", "--wd"), "optim.weight_decay", "weight decay", "W"),
    Option(
        ("--bn-weight-decay",),
        "optim.decay_rule",
        "apply weight decay to batch normalization too",
        constant="all",
    ),
    Option(("--rmsprop-alpha",), "optim.rmsprop_alpha", "smoothing constant of rmsprop", "A"),
    Option(("--rmsprop-eps",), "optim.rmsprop_eps", "epsilon of rmsprop", "E"),
    Option(("--nesterov",), "optim.nesterov", "use Nesterov momentum", constant=True),
    Option(("--print-freq", "-p"), "run.log_every_steps", "steps between log records", "N"),
    Option(("--resume",), "run.resume", "checkpoint folder; auto: the newest intact one", "PATH"),
    Option(("--static-loss-scale",), "precision.loss_scale", "fixed loss scale of AMP", "S"),
    Option(
        ("--dynamic-loss-scale",),
        "precision.loss_scale",
        "dynamic loss scale; overrides --static-loss-scale",
        constant="dynamic",
    ),
    Option(("--amp-backend",), "precision.amp_backend", "torch or apex", "NAME"),
    Option(
        ("--prof",),
        "run.max_steps",
        "stop after step N; -1: no limit",
        "N",
        convert=_unlimited("run.max_steps"),
    ),
    Option(("--seed",), "run.seed", "seed of weights, sample order, augmentation and mixing", "N"),
    Option(
        ("--gather-checkpoints",),
        "run.keep_checkpoints",
        "keep the N newest checkpoints besides the best; -1: all",
        "N",
        convert=_keep_checkpoints,
    ),
    Option(
        ("--raport-file", "--raport_file"),
        "run.raport_file",
        "also write records in DLLogger format to this file",
        "FILE",
    ),
    Option(
        ("--track",),
        "run.trackers",
        "also send records to these trackers: tensorboard,wandb,mlflow",
        "NAMES",
    ),
    Option(("--training-only",), "run.validate", "do not validate", constant=False),
    Option(("--no-checkpoints",), "run.save_checkpoints", "write no checkpoints", constant=False),
    Option(
        ("--checkpoint-filename", "--checkpoint"),
        "run.checkpoint_name",
        "prefix of checkpoint folder names",
        "NAME",
    ),
    Option(("--workspace",), "run.workspace", "the run's folder", "DIR"),
    Option(("--memory-format", "--memory_format"), "model.memory_format", "nchw or nhwc", "LAYOUT"),
    Option(
        ("--model-config", "-c"),
        "model.init",
        "weight initialization: fanin or fanout",
        "NAME",
        convert=_init,
    ),
    Option(("--use-ema",), "ema.decay", "keep a moving average of the weights", "DECAY"),
    Option(("--augmentation",), "data.augmentation", "augmentation policy", "NAME"),
    Option(("--gpu-affinity",), "platform.gpu_affinity", "CPU cores of each process", "NAME"),
    Option(("--topk",), "run.topk", "k of the additional top-k accuracy", "K"),
    Option(("--num_classes", "--num-classes"), "model.num_classes", "number of classes", "N"),
    Option(
        ("--pretrained-from-file",),
        "model.pretrained_from_file",
        "safetensors file with initial weights",
        "FILE",
    ),
    Option(
        ("--save-every",),
        "run.save_every",
        'interval of checkpoints: "3 steps", "10 minutes" or "1 epochs"',
        "EVERY",
        convert=_save_every,
    ),
    Option(
        ("--max-restarts", "--max_restarts"),
        "run.max_restarts",
        "restart all processes up to N times after one fails",
        "N",
    ),
    Option(
        ("--collective-timeout-s",),
        "run.collective_timeout_s",
        "seconds after which a process that does not respond counts as lost",
        "S",
    ),
    Option(
        ("--gradient-compression",),
        "optim.gradient_compression",
        "exchange gradients as fp16 or bf16",
        "NAME",
    ),
    Option(
        ("--stop-at-top1",),
        "run.stop_at_top1",
        "stop after the first validation with at least this top-1 in percent",
        "PERCENT",
    ),
    Option(
        ("--allow-changes",),
        "run.allow_changes",
        "resume with other settings or other data; the differences are recorded",
        constant=True,
    ),
)

# A benchmark measures the published configuration: --epochs stops the run and keeps the schedule.
_OTHER_KEYS = {
    ("benchmark_training", "--epochs"): "run.stop_epoch",
    ("benchmark_training_short", "--epochs"): "run.stop_epoch",
    ("benchmark_data", "--epochs"): "run.stop_epoch",
    ("benchmark_inference", "--batch-size"): "run.inference_batches",
    ("benchmark_inference", "--prof"): "run.inference_iterations",
}
_NO_EFFECT = {
    ("benchmark_inference", "--epochs"): "nothing is trained",
    ("benchmark_inference", "--run-epochs"): "nothing is trained",
    ("benchmark_inference", "--stop-at-top1"): "nothing is trained",
    ("evaluate", "--epochs"): "nothing is trained",
    ("evaluate", "--run-epochs"): "nothing is trained",
    ("evaluate", "--stop-at-top1"): "nothing is trained",
    ("evaluate", "--prof"): "all images are evaluated",
    ("benchmark_data", "--resume"): "no weights are used",
    ("benchmark_data", "--pretrained-from-file"): "no weights are used",
}


def read_option(option: Option, text: str | None, mode: str) -> tuple[Override | None, str]:
    """Return the setting of an option and a note; one of the two is empty.

    text: the option's argument; None without one.

    Raises:
        ConfigError: the argument does not fit; the message names the option.
    """
    name, key, origin = option.name, option.key, f"{option.name} on the command line"
    convert = option.convert or KEYS[key].parse
    value = option.constant if text is None else convert(text, name)
    if (mode, name) in _NO_EFFECT:
        return None, f"{name} {text} has no effect in mode {mode}: {_NO_EFFECT[mode, name]}"
    if (mode, name) in _OTHER_KEYS:
        key = _OTHER_KEYS[mode, name]
        origin += f", in mode {mode}"
        if value is None:
            return None, f"{name} {text} has no effect in mode {mode}"
        value = [value] if KEYS[key].length is not None else value
    return Override(key, value, origin), ""
