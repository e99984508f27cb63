"""The table of every ``section.key``, read off the schema's dataclasses once.

Where NVIDIA Apex can be asked for: decided from the settings alone.

Whether one value suits its key, and whether the values of a run suit one another.
"""

from __future__ import annotations

import dataclasses
import math
import posixpath
import re
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from image_classification.config.schema import SECTIONS
from image_classification.core.errors import ConfigError, nearest

IDENTITY = {
    "model.name": "--model",
    "precision.name": "--precision",
    "platform.name": "--platform",
    "run.mode": "--mode",
}
"""Keys that only the run's names set, and the option that gives each name."""


@dataclass(frozen=True)
class Key:
    """One setting: its dotted name, its type and its bounds.

    kind: element type (``str``, ``int``, ``float`` or ``bool``). length: None for a scalar, 0
    for a list of any length, n for a list of n. nonempty: the list has an element.
    words: strings taken beside numbers.
    """

    name: str
    section: str
    field: str
    kind: type
    optional: bool
    length: int | None
    default: Any
    doc: str
    choices: tuple[str, ...] | None
    minimum: float | None
    maximum: float | None
    pattern: str | None
    nonempty: bool
    words: tuple[str, ...]
    computed: bool

    @property
    def has_default(self) -> bool:
        """Whether the schema itself gives a value."""
        return self.default is not dataclasses.MISSING

    @property
    def short(self) -> str:
        """The name within its section."""
        return self.name.partition(".")[2]


def _shape(hint: Any) -> tuple[type, bool, int | None, tuple[str, ...]]:
    """Break a field's type into element kind, optional, list length, extra words."""
    arms = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    optional = type(None) in arms
    rest = [a for a in arms if a is not type(None)]
    if rest == [float, str]:
        return float, optional, None, ("dynamic",)
    (single,) = rest
    if typing.get_origin(single) is tuple:
        elements = typing.get_args(single)
        length = 0 if elements[-1] is Ellipsis else len(elements)
        return elements[0], optional, length, ()
    return single, optional, None, ()


def _read_schema() -> dict[str, Key]:
    table: dict[str, Key] = {}
    for section, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            kind, optional, length, words = _shape(hints[f.name])
            name = f"{section}.{f.metadata.get('key', f.name)}"
            table[name] = Key(
                name=name,
                section=section,
                field=f.name,
                kind=kind,
                optional=optional,
                length=length,
                default=f.default,
                doc=f.metadata["doc"],
                choices=f.metadata.get("choices"),
                minimum=f.metadata.get("min"),
                maximum=f.metadata.get("max"),
                pattern=f.metadata.get("pattern"),
                nonempty=f.metadata.get("nonempty", False),
                words=words,
                computed=f.metadata.get("computed", False),
            )
    return table


KEYS: dict[str, Key] = _read_schema()


def unknown_key(name: str) -> str:
    """Word the message for a key that does not exist, with the nearest one that does."""
    section, dot, short = name.partition(".")
    if not dot:
        if name in SECTIONS:
            example = next(k for k in KEYS if k.startswith(f"{name}."))
            return f"{name!r} is a section; write its keys with a dot, such as {example!r}"
        homes = [k for k in KEYS if k.endswith(f".{name}")]
        if homes:
            return f"unknown key {name!r}; did you mean {' or '.join(map(repr, homes))}?"
        hint = nearest(name, KEYS)
        return f"unknown key {name!r}; " + (
            f"did you mean {hint!r}?" if hint else "keys are section.key, see --explain"
        )
    if section in SECTIONS:
        own = [k.short for k in KEYS.values() if k.section == section]
        hint = nearest(short, own)
        tail = f"did you mean {hint!r}?" if hint else f"{section} has {', '.join(own)}"
        return f"unknown key {name!r}; {tail}"
    hint = nearest(name, KEYS) or nearest(section, SECTIONS)
    tail = f"did you mean {hint!r}?" if hint else f"sections are {', '.join(SECTIONS)}"
    return f"unknown key {name!r}; {tail}"


def check_apex(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Refuse ``apex`` where it has no meaning; every value is already right by itself.

    Raises:
        ConfigError: naming the key, where it came from, and a remedy.
    """
    device = values["platform.device"]
    for key in ("precision.amp_backend", "optim.implementation"):
        if values[key] == "apex" and device != "cuda":
            raise ConfigError(
                f"{key} apex ({origins[key]}) needs an NVIDIA GPU and this run is on {device} "
                f"({origins['platform.device']}); leave it out"
            )
    _check_amp(values, origins["precision.amp_backend"])
    if values["optim.implementation"] == "apex" and values["optim.name"] != "sgd":
        raise ConfigError(
            f"optim.implementation apex ({origins['optim.implementation']}) has no "
            f"{values['optim.name']} ({origins['optim.name']}); leave it out, or use "
            "--optimizer sgd"
        )


def _check_amp(values: Mapping[str, Any], origin: str) -> None:
    if values["precision.amp_backend"] != "apex":
        return
    name, dtype = values["precision.name"], values["precision.dtype"]
    if name != "AMP" or dtype != "float16":
        instead = "set precision.dtype=float16" if name == "AMP" else "use --precision AMP"
        raise ConfigError(
            f"precision.amp_backend apex ({origin}) is for precision AMP in float16 and this run "
            f"is {name} in {dtype}; leave it out, or {instead}"
        )
    if values["model.compile"]:
        raise ConfigError(
            f"precision.amp_backend apex ({origin}) replaces torch's functions, which "
            "torch.compile does not follow; leave it out, or set model.compile=false"
        )


LARGEST_WHOLE = 2**31 - 1
"""Bound of whole numbers whose key has none of its own: far above any count of a run."""

_KIND = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_NULLS = ("null", "none", "~")
_SHOWN = 60
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_OWN_FILES = (
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
_DTYPES = {
    "FP32": ("float32",),
    "TF32": ("float32",),
    "BF16": ("bfloat16",),
    "AMP": ("float16", "bfloat16"),
}


def find_key(name: str, where: str) -> Key:
    """Return the key called ``name``; ``where`` starts the error's message.

    Raises:
        ConfigError: no such key; the message has the nearest one.
    """
    try:
        return KEYS[name]
    except KeyError:
        raise ConfigError(f"{where}: {unknown_key(name)}") from None


def check_value(key: Key, value: Any, where: str) -> Any:
    """Return ``value`` in the key's own type (lists as tuples, whole floats of ints as floats).

    Raises:
        ConfigError: wrong type, not among the choices, or out of range; the message names the
            nearest value that would do.
    """
    if value is None:
        if key.optional:
            return None
        raise ConfigError(f"{where}: {key.name} must be {_KIND[key.kind]}, got null")
    if key.length is None:
        return _check_scalar(key, value, where)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: {key.name} must be a list, got {value!r}")
    if not value and key.nonempty:
        raise ConfigError(f"{where}: {key.name} must have a value, got none ({key.doc})")
    if key.length and len(value) != key.length:
        raise ConfigError(f"{where}: {key.name} must have {key.length} values, got {len(value)}")
    return tuple(_check_scalar(key, v, where) for v in value)


def _check_scalar(key: Key, value: Any, where: str) -> Any:
    value = _coerce(key, value, where)
    if key.choices is not None and value not in key.choices:
        hint = nearest(value, key.choices)
        meant = f"; did you mean {hint!r}?" if hint else ""
        valid = ", ".join(key.choices)
        raise ConfigError(f"{where}: {key.name} cannot be {value!r}{meant} (valid: {valid})")
    if key.pattern is not None and not re.fullmatch(key.pattern, value):
        raise ConfigError(f"{where}: {key.name} cannot be {value!r} ({key.doc})")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if key.minimum is not None and value < key.minimum:
            bound = f"{key.minimum:g} or more"
            near = f"the nearest valid value is {key.minimum:g}"
            raise ConfigError(f"{where}: {key.name} must be {bound}, got {value!r}; {near}")
        maximum = LARGEST_WHOLE if key.maximum is None and key.kind is int else key.maximum
        if maximum is not None and value > maximum:
            limit = str(maximum) if key.kind is int else f"{maximum:g}"
            near = f"the nearest valid value is {limit}"
            raise ConfigError(
                f"{where}: {key.name} must be {limit} or less, got {clipped(value)}; {near}"
            )
    return value


def _coerce(key: Key, value: Any, where: str) -> Any:
    kind = key.kind
    if kind is str:
        if isinstance(value, str) and value:
            return value
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, bool):
        pass
    elif kind is int and isinstance(value, int):
        return value
    elif kind is float:
        if isinstance(value, str) and value in key.words:
            return value
        # YAML 1.1 reads 1e-4, which has no dot, as text.
        if isinstance(value, (int, float, str)) and _is_number(str(value)):
            return float(value)
    also = "".join(f" or {w!r}" for w in key.words) + (" or null" if key.optional else "")
    raise ConfigError(f"{where}: {key.name} must be {_KIND[kind]}{also}, got {clipped(value)}")


def clipped(value: Any) -> str:
    """Return ``value`` as a message shows it, which is not with thousands of digits."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def whole_number(text: str) -> int | None:
    """Return the number ``text`` is, None where it is none or has more digits than any count."""
    if len(text) <= _SHOWN and re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", text):
        return int(text)
    return None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def from_text(key: Key, text: str, where: str) -> Any:
    """Read ``text`` from a command line as the key's type; lists are written ``1,2,3``.

    Raises:
        ConfigError: as `check_value`.
    """
    text = text.strip()
    if not text and key.length is None:
        # Most often a shell variable that is not set: never to be taken for a default.
        null = ", null for none," if key.optional else ""
        raise ConfigError(f"{where}: {key.name} is empty; give a value{null} or leave it out")
    if key.optional and text.casefold() in _NULLS:
        return None
    if key.length is not None:
        parts = [p.strip() for p in text.strip("[]()").split(",") if p.strip()]
        return check_value(key, [_scalar_from_text(key, p) for p in parts], where)
    return check_value(key, _scalar_from_text(key, text), where)


def _scalar_from_text(key: Key, text: str) -> Any:
    if key.kind is bool:
        return _BOOLS.get(text.casefold(), text)
    if key.kind is int:
        number = whole_number(text)
        return text if number is None else number
    return text


def check_together(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Refuse combinations no run can have; every value is already right by itself.

    Raises:
        ConfigError: naming the keys, where the offending value came from, and a remedy.
    """
    name, dtype = values["precision.name"], values["precision.dtype"]
    if dtype not in _DTYPES[name]:
        home = next(p for p in ("BF16", "AMP", "FP32") if dtype in _DTYPES[p])
        raise ConfigError(
            f"precision.dtype {dtype} ({origins['precision.dtype']}) is not what {name} means "
            f"({' or '.join(_DTYPES[name])}); use --precision {home}"
        )
    scale = values["precision.loss_scale"]
    if scale is not None and dtype != "float16":
        raise ConfigError(
            f"precision.loss_scale {scale} ({origins['precision.loss_scale']}) is only for "
            f"float16 and this run computes in {dtype}; leave it out"
        )
    if isinstance(scale, float) and scale <= 0:
        raise ConfigError(f"precision.loss_scale must be above 0, got {scale:g}")
    _check_pair(values, origins, "data.crop_area_min", "data.crop_area_max")
    _check_pair(values, origins, "data.crop_ratio_min", "data.crop_ratio_max")
    _check_pair(values, origins, "data.image_size", "data.resize")
    if min(values["data.std"]) <= 0:
        raise ConfigError(f"data.std must be above 0 everywhere, got {list(values['data.std'])}")
    if values["optim.nesterov"] and values["optim.name"] != "sgd":
        raise ConfigError(
            f"optim.nesterov needs optim.name sgd, not {values['optim.name']}; "
            "leave --nesterov out or use --optimizer sgd"
        )
    check_apex(values, origins)
    raport = values["run.raport_file"]
    if raport is not None and posixpath.normpath(raport).split("/")[0] in _OWN_FILES:
        raise ConfigError(
            f"run.raport_file {raport!r} ({origins['run.raport_file']}) is what the run itself "
            "writes in its folder; name another file, such as raport.json"
        )
    for name in ("run.early_stopping_patience", "run.stop_at_top1"):
        if values[name] is not None and not values["run.validate"]:
            raise ConfigError(
                f"{name} ({origins[name]}) rests on validations and run.validate is "
                f"false ({origins['run.validate']}); leave one of them out"
            )
    _check_schedule(values, origins)


def check_idle(
    values: Mapping[str, Any], origins: Mapping[str, str], asked: Collection[str]
) -> None:
    """Refuse settings of ``asked`` that do nothing in this run.

    ``asked`` are the keys the user has set for this run. A recipe may hold settings of a policy
    that its user has switched off.

    Raises:
        ConfigError: a setting of an augmentation policy that this run does not have.
    """
    policy = values["data.augmentation"]
    idle = {} if policy != "none" else {"data.augmentation_fill": "a policy"}
    if policy != "randaugment":
        idle |= dict.fromkeys(("data.randaugment_ops", "data.randaugment_magnitude"), "randaugment")
    for name, wanted in idle.items():
        if name in asked and values[name] != KEYS[name].default:
            raise ConfigError(
                f"{name} {values[name]} ({origins[name]}) does nothing with data.augmentation "
                f"{policy} ({origins['data.augmentation']}); set data.augmentation to {wanted} "
                "or leave it out"
            )


def _check_pair(values: Mapping[str, Any], origins: Mapping[str, str], low: str, high: str) -> None:
    if values[low] > values[high]:
        raise ConfigError(
            f"{low} {values[low]:g} ({origins[low]}) is above {high} {values[high]:g} "
            f"({origins[high]}); set both"
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
    if values["schedule.name"] == "list":
        at, lrs = values["schedule.milestone_epochs"], values["schedule.milestone_lrs"]
        if len(at) != len(lrs):
            raise ConfigError(
                f"schedule.milestone_epochs has {len(at)} values and schedule.milestone_lrs "
                f"{len(lrs)}; a list schedule needs one learning rate for each milestone"
            )
    if list(values["schedule.milestone_epochs"]) != sorted(values["schedule.milestone_epochs"]):
        raise ConfigError("schedule.milestone_epochs must ascend")
