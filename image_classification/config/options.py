"""The published command lines' options: option -> setting, with conversion and help.

Names and meanings are those of NVIDIA DeepLearningExamples' ConvNets ``launch.py`` and ``main.py``.
Two tables list options with another meaning, or none, in some modes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from image_classification.config.keys import KEYS, Key, Override, whole_number
from image_classification.core.errors import ConfigError, shortened, suggestion


@dataclass(frozen=True)
class Option:
    """One option.

    spellings: separated by spaces. metavar: "" for an option without an argument, which sets the
    value ``constant``. own_help: help text where the setting's own does not fit. convert:
    (text, option name, key) -> value, where the published meaning is not the key's own.
    """

    spellings: str
    key: str
    metavar: str
    own_help: str = ""
    constant: Any = None
    convert: Callable[[str, str, Key], Any] | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """All spellings."""
        return tuple(self.spellings.split())

    @property
    def name(self) -> str:
        """The first spelling, used in messages."""
        return self.flags[0]

    @property
    def help(self) -> str:
        """The help text."""
        return self.own_help or KEYS[self.key].doc


def _parse_int(text: str, option: str) -> int:
    number = whole_number(text.strip())
    if number is None:
        raise ConfigError(f"{option} must be a whole number, got {shortened(text)}")
    return number


def _unlimited(text: str, option: str, key: Key) -> Any:
    """Convert a count for which -1 means no limit (null)."""
    value = _parse_int(text, option)
    return None if value == -1 else key.check(value, option)


def _keep_checkpoints(text: str, option: str, key: Key) -> int:
    """Convert --gather-checkpoints: 0 keeps the best and the last, -1 keeps all."""
    value = _parse_int(text, option)
    if value < -1:
        raise ConfigError(f"{option} must be -1 or more, got {value}; -1 keeps all")
    return int(key.check(value or 1, option))


def _save_every(text: str, option: str, key: Key) -> str:
    count, _, unit = text.strip().partition(" ")
    return str(key.check(f"{count} {unit.strip().rstrip('s')}s", option))


def _init(text: str, option: str, key: Key) -> str:
    modes = {"fanin": "fan_in", "fanout": "fan_out"}
    if text not in modes:
        hint = suggestion(text, modes)
        raise ConfigError(f"{option} cannot be {text!r}{hint} (valid: {', '.join(modes)})")
    return modes[text]


def _backend(text: str, option: str, key: Key) -> str:
    # NVIDIA's own configuration file has the spelling "syntetic".
    return "synthetic" if text == "syntetic" else text


OPTIONS: tuple[Option, ...] = (
    Option("--data-backend", "data.backend", "NAME", convert=_backend),
    Option("--interpolation", "data.interpolation", "NAME"),
    Option("--workers -j", "data.workers", "N"),
    Option("--prefetch", "data.prefetch", "N"),
    Option("--epochs", "schedule.epochs", "N", "length of the learning-rate schedule"),
    Option(
        "--run-epochs",
        "run.run_epochs",
        "N",
        "stop after N more epochs, with the schedule unchanged; -1: no limit",
        convert=_unlimited,
    ),
    Option(
        "--early-stopping-patience",
        "run.early_stopping_patience",
        "N",
        "stop after N validations in a row without a better top-1; -1: off",
        convert=_unlimited,
    ),
    Option("--image-size", "data.image_size", "N", "side length of crops in pixels"),
    Option("--batch-size -b --batch_size", "batch.per_device", "N"),
    Option(
        "--optimizer-batch-size",
        "batch.global",
        "N",
        "images per optimizer step over all devices; -1: no accumulation",
        convert=_unlimited,
    ),
    Option("--lr --learning-rate --learning_rate", "optim.lr", "LR"),
    Option("--lr-schedule", "schedule.name", "NAME", "shape of the learning-rate schedule"),
    Option("--end-lr", "schedule.end_lr", "LR"),
    Option("--warmup", "schedule.warmup_epochs", "E"),
    Option("--label-smoothing", "loss.label_smoothing", "S", "label smoothing"),
    Option("--mixup", "mixing.mixup", "ALPHA"),
    Option("--optimizer", "optim.name", "NAME"),
    Option("--momentum --mom", "optim.momentum", "M"),
    Option("--weight-decay --wd", "optim.weight_decay", "W", "weight decay"),
    Option(
        "--bn-weight-decay",
        "optim.decay_rule",
        "",
        "apply weight decay to batch normalization too",
        constant="all",
    ),
    Option("--rmsprop-alpha", "optim.rmsprop_alpha", "A"),
    Option("--rmsprop-eps", "optim.rmsprop_eps", "E"),
    Option("--nesterov", "optim.nesterov", "", "use Nesterov momentum", constant=True),
    Option("--print-freq -p", "run.log_every_steps", "N"),
    Option("--resume", "run.resume", "PATH"),
    Option("--static-loss-scale", "precision.loss_scale", "S"),
    Option(
        "--dynamic-loss-scale",
        "precision.loss_scale",
        "",
        "dynamic loss scale; overrides --static-loss-scale",
        constant="dynamic",
    ),
    Option("--amp-backend", "precision.amp_backend", "NAME"),
    Option("--prof", "run.max_steps", "N", "stop after step N; -1: no limit", convert=_unlimited),
    Option("--seed", "run.seed", "N"),
    Option("--gather-checkpoints", "run.keep_checkpoints", "N", convert=_keep_checkpoints),
    Option("--raport-file --raport_file", "run.raport_file", "FILE"),
    Option(
        "--track",
        "run.trackers",
        "NAMES",
        "also send records to these trackers: tensorboard,wandb,mlflow",
    ),
    Option("--training-only", "run.validate", "", "do not validate", constant=False),
    Option("--no-checkpoints", "run.save_checkpoints", "", "write no checkpoints", constant=False),
    Option("--checkpoint-filename", "run.checkpoint_name", "NAME"),
    Option(
        "--checkpoint",
        "run.checkpoint",
        "WHICH",
        "best, last or a step: which checkpoint of the run given with --resume or --from; default: "
        "best to evaluate, last to continue",
    ),
    Option("--workspace", "run.workspace", "DIR", "the run's folder"),
    Option("--memory-format --memory_format", "model.memory_format", "LAYOUT", "nchw or nhwc"),
    Option(
        "--model-config -c",
        "model.init",
        "NAME",
        "weight initialization: fanin or fanout",
        convert=_init,
    ),
    Option("--use-ema", "ema.decay", "DECAY", "keep a moving average of the weights"),
    Option("--augmentation", "data.augmentation", "NAME", "augmentation policy"),
    Option("--devices", "platform.num_devices", "N|all"),
    Option("--gpu-affinity", "platform.gpu_affinity", "NAME"),
    Option("--topk", "run.topk", "K"),
    Option("--num_classes --num-classes", "model.num_classes", "N"),
    Option("--pretrained-from-file", "model.pretrained_from_file", "FILE"),
    Option("--save-every", "run.save_every", "EVERY", convert=_save_every),
    Option("--max-restarts --max_restarts", "run.max_restarts", "N"),
    Option("--collective-timeout-s", "run.collective_timeout_s", "S"),
    Option(
        "--gradient-compression",
        "optim.gradient_compression",
        "NAME",
        "exchange gradients as fp16 or bf16; changes results",
    ),
    Option("--stop-at-top1", "run.stop_at_top1", "PERCENT"),
    Option("--allow-changes", "run.allow_changes", "", constant=True),
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
    ("benchmark_data", "--checkpoint"): "no weights are used",
    ("benchmark_data", "--pretrained-from-file"): "no weights are used",
}


def read_option(option: Option, text: str | None, mode: str) -> tuple[Override | None, str]:
    """Return the setting of an option and a note; one of the two is empty.

    text: the option's argument; None without one.

    Raises:
        ConfigError: the argument does not fit; the message names the option.
    """
    name, origin = option.name, f"{option.name} on the command line"
    key = KEYS[option.key]
    if name == "--checkpoint" and text is not None and "." in text:
        key = KEYS["run.checkpoint_name"]  # the published abbreviation of --checkpoint-filename
    if text is None:
        value = option.constant
    elif option.convert is not None:
        value = option.convert(text, name, key)
    else:
        value = key.parse(text, name)
    if (mode, name) in _NO_EFFECT:
        return None, f"{name} {text} has no effect in mode {mode}: {_NO_EFFECT[mode, name]}"
    if (mode, name) in _OTHER_KEYS:
        key = KEYS[_OTHER_KEYS[mode, name]]
        origin += f", in mode {mode}"
        if value is None:
            return None, f"{name} {text} has no effect in mode {mode}"
        value = value if key.length is None else [value]
    return Override(key.name, value, origin), ""
