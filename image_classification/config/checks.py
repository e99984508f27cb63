"""Combinations of settings that no run can have; each value is already valid by itself."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping
from typing import Any

from image_classification.config.keys import KEYS
from image_classification.core.errors import ConfigError

_DTYPES = {
    "FP32": ("float32",),
    "TF32": ("float32",),
    "BF16": ("bfloat16",),
    "AMP": ("float16", "bfloat16"),
}
_RUN_FILES = (
    ".",
    ".lock",
    "checkpoints",
    "config.yml",
    "diverged.json",
    "metrics.jsonl",
    "plots",
    "report.html",
    "report.json",
    "trackers",
)


def check_together(
    values: Mapping[str, Any], origins: Mapping[str, str], given: Collection[str]
) -> None:
    """Check the values of a run against one another. given: the keys that the user set.

    Raises:
        ConfigError: naming the keys, where the offending value came from, and a remedy.
    """
    _check_precision(values, origins)
    _check_apex(values, origins)
    _check_order(values, origins, "data.crop_area_min", "data.crop_area_max")
    _check_order(values, origins, "data.crop_ratio_min", "data.crop_ratio_max")
    _check_order(values, origins, "data.image_size", "data.resize")
    if min(values["data.std"]) <= 0:
        raise ConfigError(f"data.std must be above 0 everywhere, got {list(values['data.std'])}")
    check_augmentation(values, origins, given)
    if values["optim.nesterov"] and values["optim.name"] != "sgd":
        raise ConfigError(
            f"optim.nesterov needs optim.name sgd, not {values['optim.name']}; "
            "leave --nesterov out or use --optimizer sgd"
        )
    raport = values["run.raport_file"]
    if raport is not None and posixpath.normpath(raport).split("/")[0] in _RUN_FILES:
        raise ConfigError(
            f"run.raport_file {raport!r} ({origins['run.raport_file']}) is a file that the run "
            "itself writes in its folder; name another file, such as raport.json"
        )
    for name in ("run.early_stopping_patience", "run.stop_at_top1"):
        if values[name] is not None and not values["run.validate"]:
            raise ConfigError(
                f"{name} ({origins[name]}) needs validations and run.validate is false "
                f"({origins['run.validate']}); leave one of them out"
            )
    _check_schedule(values, origins)


def _check_precision(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    name, dtype = values["precision.name"], values["precision.dtype"]
    if dtype not in _DTYPES[name]:
        other = next(p for p in ("BF16", "AMP", "FP32") if dtype in _DTYPES[p])
        raise ConfigError(
            f"precision.dtype {dtype} ({origins['precision.dtype']}) does not fit precision {name} "
            f"({' or '.join(_DTYPES[name])}); use --precision {other}"
        )
    scale = values["precision.loss_scale"]
    if scale is not None and dtype != "float16":
        raise ConfigError(
            f"precision.loss_scale {scale} ({origins['precision.loss_scale']}) is only for "
            f"float16 and this run computes in {dtype}; leave it out"
        )
    if isinstance(scale, float) and scale <= 0:
        raise ConfigError(f"precision.loss_scale must be above 0, got {scale:g}")


def _check_apex(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    device = values["platform.device"]
    for key in ("precision.amp_backend", "optim.implementation"):
        if values[key] == "apex" and device != "cuda":
            raise ConfigError(
                f"{key} apex ({origins[key]}) needs an NVIDIA GPU and this run is on {device} "
                f"({origins['platform.device']}); leave it out"
            )
    if values["precision.amp_backend"] == "apex":
        origin = origins["precision.amp_backend"]
        name, dtype = values["precision.name"], values["precision.dtype"]
        if name != "AMP" or dtype != "float16":
            instead = "set precision.dtype=float16" if name == "AMP" else "use --precision AMP"
            raise ConfigError(
                f"precision.amp_backend apex ({origin}) is for precision AMP in float16 and this "
                f"run is {name} in {dtype}; leave it out, or {instead}"
            )
        if values["model.compile"]:
            raise ConfigError(
                f"precision.amp_backend apex ({origin}) replaces torch's functions, which "
                "torch.compile cannot trace; leave it out, or set model.compile=false"
            )
    if values["optim.implementation"] == "apex" and values["optim.name"] != "sgd":
        raise ConfigError(
            f"optim.implementation apex ({origins['optim.implementation']}) has no "
            f"{values['optim.name']} ({origins['optim.name']}); leave it out, or use "
            "--optimizer sgd"
        )


def _check_order(
    values: Mapping[str, Any], origins: Mapping[str, str], low: str, high: str
) -> None:
    if values[low] > values[high]:
        raise ConfigError(
            f"{low} {values[low]:g} ({origins[low]}) is above {high} {values[high]:g} "
            f"({origins[high]}); set both"
        )


def check_augmentation(
    values: Mapping[str, Any], origins: Mapping[str, str], given: Collection[str]
) -> None:
    """Refuse a setting of an augmentation policy that is off, if the user set it.

    A recipe may set it: the user may have switched the recipe's policy off.
    """
    policy = values["data.augmentation"]
    unused = {} if policy != "none" else {"data.augmentation_fill": "a policy"}
    if policy != "randaugment":
        keys = ("data.randaugment_ops", "data.randaugment_magnitude")
        unused |= dict.fromkeys(keys, "randaugment")
    for name, wanted in unused.items():
        if name in given and values[name] != KEYS[name].default:
            raise ConfigError(
                f"{name} {values[name]} ({origins[name]}) has no effect with data.augmentation "
                f"{policy} ({origins['data.augmentation']}); set data.augmentation to {wanted} "
                "or leave it out"
            )


def _check_schedule(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    epochs, warmup = values["schedule.epochs"], values["schedule.warmup_epochs"]
    if warmup > epochs:
        raise ConfigError(
            f"schedule.epochs {epochs} ({origins['schedule.epochs']}) is shorter than "
            f"schedule.warmup_epochs {warmup:g} ({origins['schedule.warmup_epochs']}); "
            f"give --warmup too, or --run-epochs {epochs} to stop the longer schedule early"
        )
    if values["schedule.name"] == "exponential" and values["schedule.end_lr"] <= 0:
        raise ConfigError("schedule.name exponential never reaches 0; set --end-lr above 0")
    milestones, lrs = values["schedule.milestone_epochs"], values["schedule.milestone_lrs"]
    if values["schedule.name"] == "list" and len(milestones) != len(lrs):
        raise ConfigError(
            f"schedule.milestone_epochs has {len(milestones)} values and schedule.milestone_lrs "
            f"{len(lrs)}; a list schedule needs one learning rate for each milestone"
        )
    if list(milestones) != sorted(milestones):
        raise ConfigError("schedule.milestone_epochs must ascend")
