"""The published command lines' option names: one table, option -> key, conversion and help.

The names and their meaning are those of NVIDIA DeepLearningExamples' ConvNets ``launch.py`` and
``main.py``. Where a mode gives an option another meaning than the key in its row, the two small
tables below the rows say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from image_classification.config.checks import (
    check_value,
    clipped,
    find_key,
    from_text,
    whole_number,
)
from image_classification.config.provenance import Override
from image_classification.core.errors import ConfigError, nearest


@dataclass(frozen=True)
class Option:
    """One published option.

    flags: its spellings, the first one leads. key: the setting it stands for. constant: what an
    option without an argument sets. convert: reads the argument's text where the published
    meaning is not the key's own (takes the text and the option's name). help: shown by --help.
    """

    flags: tuple[str, ...]
    key: str
    help: str
    metavar: str = ""
    constant: Any = None
    convert: Callable[[str, str], Any] | None = None

    @property
    def name(self) -> str:
        """The spelling messages use: the longest name, which says most."""
        return next(flag for flag in self.flags if flag.startswith("--"))

    @property
    def takes_value(self) -> bool:
        """Whether an argument follows the option."""
        return self.constant is None


def _none_below_one(key: str) -> Callable[[str, str], Any]:
    """Return the reader of a count whose published 'no limit' is -1."""

    def read(text: str, option: str) -> Any:
        value = _whole(text, option)
        return None if value == -1 else check_value(find_key(key, option), value, option)

    return read


def _whole(text: str, option: str) -> int:
    number = whole_number(text.strip())
    if number is None:
        raise ConfigError(f"{option} must be a whole number, got {clipped(text)}")
    return number


def _kept_checkpoints(text: str, option: str) -> int:
    """0 kept only the best and the last; -1 kept all."""
    value = _whole(text, option)
    if value < -1:
        raise ConfigError(f"{option} must be -1 or more, got {value}; -1 keeps all")
    checked: int = check_value(find_key("run.keep_checkpoints", option), value, option)
    return max(checked, 1) if checked >= 0 else -1


def _every(text: str, option: str) -> str:
    count, _, unit = text.strip().partition(" ")
    plural = unit.strip().rstrip("s") + "s"
    key = find_key("run.save_every", option)
    return str(check_value(key, f"{count} {plural}", option))


def _one_of(table: dict[str, Any]) -> Callable[[str, str], Any]:
    def read(text: str, option: str) -> Any:
        if text in table:
            return table[text]
        hint = nearest(text, table)
        meant = f"; did you mean {hint!r}?" if hint else ""
        raise ConfigError(f"{option} cannot be {text!r}{meant} (valid: {', '.join(table)})")

    return read


def _backend(text: str, option: str) -> str:
    # Published as "syntetic" in the predecessor's own configuration file.
    return "synthetic" if text == "syntetic" else text


OPTIONS: tuple[Option, ...] = (
    Option(("--data-backend",), "data.backend", "data backend", "NAME", convert=_backend),
    Option(("--interpolation",), "data.interpolation", "resampling kernel", "NAME"),
    Option(("--workers", "-j"), "data.workers", "loader processes a device", "N"),
    Option(("--prefetch",), "data.prefetch", "batches each worker prepares ahead", "N"),
    Option(("--epochs",), "schedule.epochs", "length of the learning-rate schedule", "N"),
    Option(
        ("--run-epochs",),
        "run.run_epochs",
        "stop after N epochs from here on; the schedule keeps its length; -1: do not",
        "N",
        convert=_none_below_one("run.run_epochs"),
    ),
    Option(
        ("--early-stopping-patience",),
        "run.early_stopping_patience",
        "stop after N validations without a better top-1; -1: do not",
        "N",
        convert=_none_below_one("run.early_stopping_patience"),
    ),
    Option(("--image-size",), "data.image_size", "side of the crops, in pixels", "N"),
    Option(
        ("--batch-size", "-b", "--batch_size"),
        "batch.per_device",
        "images a device a micro-batch",
        "N",
    ),
    Option(
        ("--optimizer-batch-size",),
        "batch.global",
        "images an optimizer step over all devices; -1: no accumulation",
        "N",
        convert=_none_below_one("batch.global"),
    ),
    Option(
        ("--lr", "--learning-rate", "--learning_rate"),
        "optim.lr",
        "peak learning rate at the global batch",
        "LR",
    ),
    Option(("--lr-schedule",), "schedule.name", "shape of the learning rate", "NAME"),
    Option(("--end-lr",), "schedule.end_lr", "learning rate at the schedule's end", "LR"),
    Option(("--warmup",), "schedule.warmup_epochs", "epochs of linear warm-up", "E"),
    Option(("--label-smoothing",), "loss.label_smoothing", "label smoothing", "S"),
    Option(("--mixup",), "mixing.mixup", "alpha of mixup; 0: off", "ALPHA"),
    Option(("--optimizer",), "optim.name", "optimizer", "NAME"),
    Option(("--momentum", "--mom"), "optim.momentum", "momentum", "M"),
    Option(("--weight-decay", "--wd"), "optim.weight_decay", "weight decay", "W"),
    Option(
        ("--bn-weight-decay",),
        "optim.decay_rule",
        "decay batch normalization's parameters too",
        constant="all",
    ),
    Option(("--rmsprop-alpha",), "optim.rmsprop_alpha", "rmsprop smoothing", "A"),
    Option(("--rmsprop-eps",), "optim.rmsprop_eps", "rmsprop epsilon", "E"),
    Option(("--nesterov",), "optim.nesterov", "Nesterov momentum", constant=True),
    Option(("--print-freq", "-p"), "run.log_every_steps", "steps between records", "N"),
    Option(("--resume",), "run.resume", "checkpoint folder, or auto: the newest good one", "PATH"),
    Option(("--static-loss-scale",), "precision.loss_scale", "fixed loss scale of AMP", "S"),
    Option(
        ("--dynamic-loss-scale",),
        "precision.loss_scale",
        "loss scale that follows overflows; goes before --static-loss-scale",
        constant="dynamic",
    ),
    Option(
        ("--amp-backend",),
        "precision.amp_backend",
        "whose mixed precision: torch or apex",
        "NAME",
    ),
    Option(
        ("--prof",),
        "run.max_steps",
        "stop at step N; -1: do not",
        "N",
        convert=_none_below_one("run.max_steps"),
    ),
    Option(("--seed",), "run.seed", "seed of weights, order, augmentation and mixing", "N"),
    Option(
        ("--gather-checkpoints",),
        "run.keep_checkpoints",
        "keep the N newest checkpoints beside the best; -1: all",
        "N",
        convert=_kept_checkpoints,
    ),
    Option(
        ("--raport-file", "--raport_file"),
        "run.raport_file",
        "write DLLogger lines to this file as well",
        "FILE",
    ),
    Option(
        ("--track",),
        "run.trackers",
        "send the records to these trackers as well: tensorboard,wandb,mlflow",
        "NAMES",
    ),
    Option(("--training-only",), "run.validate", "do not evaluate", constant=False),
    Option(("--no-checkpoints",), "run.save_checkpoints", "write no checkpoint", constant=False),
    Option(
        ("--checkpoint-filename", "--checkpoint"),
        "run.checkpoint_name",
        "what checkpoint folders' names start with",
        "NAME",
    ),
    Option(("--workspace",), "run.workspace", "the run's folder", "DIR"),
    Option(("--memory-format", "--memory_format"), "model.memory_format", "nchw or nhwc", "LAYOUT"),
    Option(
        ("--model-config", "-c"),
        "model.init",
        "initialisation: fanin or fanout",
        "NAME",
        convert=_one_of({"fanin": "fan_in", "fanout": "fan_out"}),
    ),
    Option(("--use-ema",), "ema.decay", "keep an average of the weights", "DECAY"),
    Option(("--augmentation",), "data.augmentation", "further augmentation", "NAME"),
    Option(("--gpu-affinity",), "platform.gpu_affinity", "CPU cores of each process", "NAME"),
    Option(("--topk",), "run.topk", "the k of top-k", "K"),
    Option(("--num_classes", "--num-classes"), "model.num_classes", "classes", "N"),
    Option(
        ("--pretrained-from-file",),
        "model.pretrained_from_file",
        "safetensors file the weights start from",
        "FILE",
    ),
    Option(
        ("--save-every",),
        "run.save_every",
        'how often to save: "3 steps", "10 minutes" or "1 epochs"',
        "EVERY",
        convert=_every,
    ),
    Option(
        ("--max-restarts", "--max_restarts"),
        "run.max_restarts",
        "start all processes again, up to N times, after one has died",
        "N",
    ),
    Option(
        ("--collective-timeout-s",),
        "run.collective_timeout_s",
        "a process that does not answer the others for so long is lost",
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
        "stop after the first validation whose top-1 reaches this many percent",
        "PERCENT",
    ),
    Option(
        ("--allow-changes",),
        "run.allow_changes",
        "resume under other settings or on other data; the differences are recorded",
        constant=True,
    ),
)

BY_NAME = {option.name: option for option in OPTIONS}

# A benchmark times the published configuration, so there --epochs stops the run and leaves the
# schedule alone; in inference, a batch and an iteration are those of the latency table.
_IN_MODE = {
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
    ("evaluate", "--prof"): "every image is counted",
    ("benchmark_data", "--resume"): "no weights are used",
    ("benchmark_data", "--pretrained-from-file"): "no weights are used",
}


def translate(option: Option, text: str | None, mode: str) -> tuple[list[Override], list[str]]:
    """Turn one given option into settings and notes; ``text`` is None without an argument.

    Raises:
        ConfigError: the argument does not suit; the message names the option.
    """
    given, key = option.name, option.key
    origin = f"{given} on the command line"
    value = option.constant if text is None else _read(option, text)
    if (mode, given) in _NO_EFFECT:
        reason = _NO_EFFECT[mode, given]
        return [], [f"{given} {text} has no effect in mode {mode}: {reason}"]
    if (mode, given) in _IN_MODE:
        key = _IN_MODE[mode, given]
        origin += f", in mode {mode}"
        if value is None:
            return [], [f"{given} {text} has no effect in mode {mode}"]
        value = [value] if find_key(key, given).length is not None else value
    return [Override(key, value, origin)], []


def _read(option: Option, text: str) -> Any:
    if option.convert is not None:
        return option.convert(text, option.name)
    return from_text(find_key(option.key, option.name), text, option.name)


def read_setting(text: str) -> Override:
    """Read the argument of ``--set section.key=value``.

    Raises:
        ConfigError: no ``=``, no such key, or a value that does not suit it.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: write section.key=value")
    key = find_key(name.strip(), f"--set {text}")
    return Override(key.name, from_text(key, value, f"--set {text}"), f"--set {text}")
