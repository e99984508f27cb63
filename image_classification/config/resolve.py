"""Resolve a run's names and the user's settings into one `RunConfig`.

Later layers win: schema and ``defaults`` < precision < platform < the model's configuration (its
entry) < recipe < mode < command line. `read_run` reads the layers once; `LayeredRun.on` applies
the devices.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from image_classification.config.catalogue import Catalogue, Entry, load_catalogue
from image_classification.config.keys import KEYS, Override, find_key, settable_key
from image_classification.config.names import read_name
from image_classification.config.placement import place
from image_classification.config.schema import MODES, SECTIONS, RunConfig, RunNames
from image_classification.core.class_folders import own_classes
from image_classification.core.errors import ConfigError
from image_classification.core.types import DevicesFound

OWN_DATA_RECIPE = "photos"
"""The default recipe for the user's own data, where a platform has it."""

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


@dataclass
class Values:
    """The settings of a run while its layers are applied: later layers win.

    published: the layers' values of the keys that the user set.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set a value, replacing that of an earlier layer."""
        self.values[key] = value
        self.origins[key] = origin

    def set_by_user(self, override: Override) -> None:
        """Set a checked value that the user gave, replacing an earlier one."""
        self.published.setdefault(override.key, self.values.get(override.key))
        self.put(override.key, override.value, override.origin)

    def given(self, key: str) -> bool:
        """Return whether the user set ``key`` for this run."""
        return key in self.published

    def inherited(self, key: str) -> Any:
        """Return the layers' value of ``key``, without the user's setting."""
        return self.published.get(key, self.values.get(key))

    def changed(self, key: str) -> bool:
        """Return whether the user set ``key`` to another value than the layers have."""
        return self.given(key) and self[key] != self.inherited(key)

    def shown(self, key: str) -> str:
        """Return ``key value (origin)`` for messages."""
        value = self[key]
        text = f"{value:g}" if isinstance(value, float) else value
        return f"{key} {text} ({self.origins[key]})"

    def copy(self) -> Values:
        """Return an independent copy."""
        return Values(dict(self.values), dict(self.origins), dict(self.published))


@dataclass(frozen=True)
class LayeredRun:
    """The settings of a run before its devices are known; checked, but for the device counts."""

    names: RunNames
    values: Values
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]

    def __getitem__(self, key: str) -> Any:
        """Return the value of ``section.key``, as published or set by the user."""
        return self.values[key]

    def replace(self, override: Override) -> LayeredRun:
        """Return this run with one more setting, in place of the user's own."""
        values = self.values.copy()
        values.set_by_user(override)
        return dataclasses.replace(self, values=values)

    def on(
        self,
        available: DevicesFound | None = None,
        world_size: int | None = None,
        num_nodes: int = 1,
    ) -> RunConfig:
        """Return the configuration on these devices.

        available: the devices of this node; None: the platform's. world_size, num_nodes: of the
        processes already started, if any.

        Raises:
            ConfigError, DeviceError: see `placement.place`.
        """
        values = self.values.copy()
        notes = place(values, available, world_size, num_nodes)
        sections = {
            section: cls(**{k.field: values[k.name] for k in KEYS.values() if k.section == section})
            for section, cls in SECTIONS.items()
        }
        return RunConfig(
            names=self.names,
            **sections,
            provenance={name: values.origins[name] for name in KEYS},
            warnings=(*self.warnings, *notes, *self.assumptions),
            sources=self.sources,
        )


def read_run(
    model: str,
    precision: str,
    mode: str,
    platform: str,
    recipe: str | None = None,
    *,
    data: str | None = None,
    overrides: Mapping[str, Any] | Sequence[Override] = (),
    config_file: Path | None = None,
    notes: Sequence[str] = (),
    base: Sequence[Override] = (),
) -> LayeredRun:
    """Apply the layers of a run's names and the user's settings.

    recipe: None is the entry's default. data: a folder, ``demo`` or ``synthetic``; None is the
    platform's. overrides: key -> value, or `Override` with its origin. notes: first ``warnings``.
    base: the settings of an earlier run, of other keys than the overrides.

    Raises:
        ConfigError: an unknown name, key or value, or names or values that do not fit together.
    """
    catalogue = load_catalogue(config_file)
    about = {name: block.about for name, block in catalogue.platforms.items() if block.about}
    mode, mode_note = read_name("mode", mode, MODES)
    model, model_note = read_name("model", model, catalogue.models)
    precision, precision_note = read_name("precision", precision, catalogue.precisions)
    platform, platform_note = read_name("platform", platform, catalogue.platforms, about)
    read = [model_note, precision_note, mode_note, platform_note]
    entry = catalogue.find(model, platform, precision)
    own = _own_data(catalogue, platform, data, overrides, base)
    notes = [*(note for note in read if note), *notes]
    if recipe is None:
        recipe = entry.default_recipe
        if own is not None and OWN_DATA_RECIPE in entry.recipes and recipe != OWN_DATA_RECIPE:
            notes.append(
                f"recipe {OWN_DATA_RECIPE}, as {own.path} is your own data; --recipe {recipe} "
                f"selects the default of {platform}"
            )
            recipe = OWN_DATA_RECIPE
    kind = f"recipe of {model} {platform} {precision}"
    recipe, note = read_name(kind, recipe, entry.recipes)
    notes += [note] if note else []
    names = RunNames(model, precision, mode, platform, recipe)

    values = _apply_layers(catalogue, entry, names)
    if own is not None:
        at = f"from the class folders of {own.path}"
        values.put("model.num_classes", len(own.classes), at)
        values.put("data.exif_orientation", True, f"{own.path} is your own data")
    if isinstance(overrides, Mapping):
        overrides = [Override(key, value, "overrides argument") for key, value in overrides.items()]
    if data is not None:
        overrides = [Override("data.path", data, "DATA on the command line"), *overrides]
    _apply_base(values, base)
    _apply_overrides(values, overrides)
    missing = [k.name for k in KEYS.values() if not k.computed and k.name not in values.values]
    if missing:
        raise ConfigError(
            f"{catalogue.name}: {model} {platform} {precision} has no value for "
            f"{', '.join(missing)}; its entry must set them"
        )
    if own is not None:
        _check_num_classes(values, own)
    _keep_resize_margin(values)
    warnings = (*notes, *_choose_backend(values), *_choose_dtype(values), *_unmeasured(values))
    for check in (_check_precision, _check_apex, _check_data, _check_run, _check_schedule):
        check(values)
    blocks = (catalogue.platforms[platform], entry.block, entry.recipes[recipe])
    assumptions = dict.fromkeys(line for block in blocks for line in block.assumptions)
    sources = dict.fromkeys(source for block in blocks for source in block.sources)
    return LayeredRun(
        names, values, warnings, tuple(f"assumption: {a}" for a in assumptions), tuple(sources)
    )


def resolve(
    model: str,
    precision: str,
    mode: str,
    platform: str,
    recipe: str | None = None,
    *,
    data: str | None = None,
    overrides: Mapping[str, Any] | Sequence[Override] = (),
    available: DevicesFound | None = None,
    world_size: int | None = None,
    num_nodes: int = 1,
    **settings: Any,
) -> RunConfig:
    """Return the configuration of a run: `read_run`, then `LayeredRun.on`.

    Args:
        model: one of `list_models`.
        precision: ``FP32``, ``TF32``, ``AMP`` or ``BF16``.
        mode: such as ``convergence``, which trains.
        platform: such as ``CPU``, ``GPU`` (any NVIDIA GPU) or ``DGX1V``.
        recipe: None: the default of model, platform and precision.
        data: a folder, ``demo`` or ``synthetic``; None: the platform's.
        overrides: ``section.key`` -> value, the settings of ``--set``.
        available: the devices of this machine; None: those that the platform names.
        world_size: number of processes already started, if any.
        num_nodes: number of machines they are on.
        settings: ``config_file`` and ``notes`` of `read_run`.

    Raises:
        ConfigError: an unknown name, key or value, or names or values that do not fit together.
    """
    run = read_run(
        model, precision, mode, platform, recipe, data=data, overrides=overrides, **settings
    )
    return run.on(available, world_size, num_nodes)


class OwnData(NamedTuple):
    """The user's own data set: its folder, and the names of its classes."""

    path: str
    classes: tuple[str, ...]


def _own_data(
    catalogue: Catalogue,
    platform: str,
    data: str | None,
    overrides: Mapping[str, Any] | Sequence[Override],
    base: Sequence[Override],
) -> OwnData | None:
    """Return the data set that the user named, if it is the user's own; see `own_classes`."""
    if not isinstance(overrides, Mapping):
        overrides = {override.key: override.value for override in overrides}
    earlier = {override.key: override.value for override in base}
    path = overrides.get("data.path", data or earlier.get("data.path"))
    layers = (catalogue.defaults, catalogue.platforms[platform].settings)
    defaults = [layer["data.path"][0] for layer in layers if "data.path" in layer]
    if not isinstance(path, str) or path in ("demo", "synthetic", *defaults):
        return None
    classes = own_classes(path)
    return None if classes is None else OwnData(path, classes)


def _check_num_classes(values: Values, own: OwnData) -> None:
    """Raise ConfigError if the user gave another number of classes to train than there are."""
    count, given = len(own.classes), values["model.num_classes"]
    # A model may know more classes than the images that it is evaluated on.
    if given != count and values["run.mode"] != "evaluate":
        raise ConfigError(
            f"{values.shown('model.num_classes')} contradicts the {count} class folders of "
            f"{own.path}: give --num_classes {count}, or leave it out"
        )


def _apply_layers(catalogue: Catalogue, entry: Entry, names: RunNames) -> Values:
    values = Values()
    for key in KEYS.values():
        if key.has_default:
            values.put(key.name, key.default, "default (schema)")
    entry_name = f"{names.model} {names.platform} {names.precision}"
    recipe_name = f"recipe {names.recipe}"
    layers = {
        "defaults": catalogue.defaults,
        f"precision {names.precision}": catalogue.precisions[names.precision],
        f"platform {names.platform}": catalogue.platforms[names.platform].settings,
        entry_name: entry.block.settings,
        recipe_name: catalogue.recipes[names.recipe],
        f"{recipe_name} of {entry_name}": entry.recipes[names.recipe].settings,
        f"mode {names.mode}": catalogue.modes.get(names.mode, {}),
    }
    for name, layer in layers.items():
        for key_name, (value, where) in layer.items():
            values.put(key_name, value, f"{where}, {name}")
    values.put("model.name", names.model, "--model")
    values.put("precision.name", names.precision, "--precision")
    values.put("platform.name", names.platform, "--platform")
    values.put("run.mode", names.mode, "--mode")
    return values


def _apply_base(values: Values, base: Iterable[Override]) -> None:
    """Apply the settings of an earlier run: those that the layers do not have as the user's."""
    for override in base:
        key, where = find_key(override.key, override.origin), override.origin
        value = tuple(override.value) if isinstance(override.value, list) else override.value
        if key.name in values.values and values[key.name] == value:
            values.put(key.name, value, where)
        else:
            settable_key(key.name, where)
            values.set_by_user(Override(key.name, key.check(value, where), where))


def _apply_overrides(values: Values, overrides: Iterable[Override]) -> None:
    """Check and apply the user's settings; two different values for a key are an error."""
    for override in overrides:
        value, where = override.value, override.origin
        key = settable_key(override.key, where)
        if not (key.name == "batch.global" and value is None):
            value = key.check(value, where)
        if values.given(key.name) and values[key.name] != value:
            raise ConfigError(
                f"{key.name} is given twice: {values[key.name]} ({values.origins[key.name]}) and "
                f"{value} ({where}); keep one"
            )
        values.set_by_user(Override(key.name, value, where))


def _keep_resize_margin(values: Values) -> None:
    """Keep the difference of resize and crop (32 px in the published runs) for another crop."""
    if values.changed("data.image_size") and not values.given("data.resize"):
        size, before = values["data.image_size"], values.inherited("data.image_size")
        resize = values["data.resize"]
        values.put(
            "data.resize", size + resize - before, f"formula: {size} + ({resize} - {before})"
        )


def _choose_backend(values: Values) -> list[str]:
    path, backend = values["data.path"], values["data.backend"]
    path_origin, backend_origin = values.origins["data.path"], values.origins["data.backend"]
    if path == "synthetic" and backend != "synthetic":
        if values.given("data.backend"):
            raise ConfigError(
                f"data.path is synthetic ({path_origin}) and data.backend is "
                f"{backend} ({backend_origin}); leave one of them out"
            )
        values.put("data.backend", "synthetic", f"data.path is synthetic: {path_origin}")
    elif backend == "synthetic" and path != "synthetic":
        values.put("data.path", "synthetic", f"data.backend is synthetic: {backend_origin}")
        if values.given("data.path"):
            return [
                f"{path} is not read, as the data are synthetic ({backend_origin}); "
                "--data-backend pytorch reads it"
            ]
    return []


def _choose_dtype(values: Values) -> list[str]:
    """Set AMP's dtype: float16 with loss scaling on a GPU, bfloat16 where float16 is slow."""
    device = values["platform.device"]
    if values["precision.name"] != "AMP":
        return []
    notes = []
    if device in ("cpu", "hpu") and not values.given("precision.dtype"):
        reason = f"AMP on a {device} is bfloat16: it has no fast float16"
        values.put("precision.dtype", "bfloat16", reason)
        notes.append(reason)
    if values["precision.dtype"] == "bfloat16" and not values.given("precision.loss_scale"):
        values.put("precision.loss_scale", None, "bfloat16 needs no loss scaling")
    return notes


def _unmeasured(values: Values) -> list[str]:
    """Return a note if a training benchmark ends before its measured steps."""
    steps, warmup = values["run.max_steps"], values["run.benchmark_warmup_steps"]
    if not values["run.mode"].startswith("benchmark_training") or steps is None or steps > warmup:
        return []
    return [
        f"no training speed is measured: the run ends at step {steps} and the first {warmup} are "
        "warm-up; stop later with --prof, or --set run.benchmark_warmup_steps=N"
    ]


def _check_precision(values: Values) -> None:
    name, dtype = values["precision.name"], values["precision.dtype"]
    if dtype not in _DTYPES[name]:
        other = next(p for p in ("BF16", "AMP", "FP32") if dtype in _DTYPES[p])
        raise ConfigError(
            f"{values.shown('precision.dtype')} does not fit precision {name} "
            f"({' or '.join(_DTYPES[name])}); use --precision {other}"
        )
    scale = values["precision.loss_scale"]
    if scale is not None and dtype != "float16":
        raise ConfigError(
            f"{values.shown('precision.loss_scale')} is only for float16 and this run computes in "
            f"{dtype}; leave it out"
        )
    if isinstance(scale, float) and scale <= 0:
        raise ConfigError(f"precision.loss_scale must be above 0, got {scale:g}")


def _check_apex(values: Values) -> None:
    for key in ("precision.amp_backend", "optim.implementation"):
        if values[key] == "apex" and values["platform.device"] != "cuda":
            raise ConfigError(
                f"{values.shown(key)} needs an NVIDIA GPU and this run is on "
                f"{values['platform.device']} ({values.origins['platform.device']}); leave it out"
            )
    if values["precision.amp_backend"] == "apex":
        backend = values.shown("precision.amp_backend")
        name, dtype = values["precision.name"], values["precision.dtype"]
        if name != "AMP" or dtype != "float16":
            instead = "set precision.dtype=float16" if name == "AMP" else "use --precision AMP"
            raise ConfigError(
                f"{backend} is for precision AMP in float16 and this run is {name} in {dtype}; "
                f"leave it out, or {instead}"
            )
        if values["model.compile"]:
            raise ConfigError(
                f"{backend} replaces torch's functions, which torch.compile cannot trace; leave it "
                "out, or set model.compile=false"
            )
    if values["optim.implementation"] == "apex" and values["optim.name"] != "sgd":
        raise ConfigError(
            f"{values.shown('optim.implementation')} has no {values['optim.name']} "
            f"({values.origins['optim.name']}); leave it out, or use --optimizer sgd"
        )


def _check_data(values: Values) -> None:
    for low, high in (
        ("data.crop_area_min", "data.crop_area_max"),
        ("data.crop_ratio_min", "data.crop_ratio_max"),
        ("data.image_size", "data.resize"),
    ):
        if values[low] > values[high]:
            raise ConfigError(f"{values.shown(low)} is above {values.shown(high)}; set both")
    if min(values["data.std"]) <= 0:
        raise ConfigError(f"data.std must be above 0 everywhere, got {list(values['data.std'])}")
    # A recipe may set these: the user may have switched the recipe's policy off.
    policy = values["data.augmentation"]
    for name, wanted, has_effect in (
        ("data.augmentation_fill", "a policy", policy != "none"),
        ("data.randaugment_ops", "randaugment", policy == "randaugment"),
        ("data.randaugment_magnitude", "randaugment", policy == "randaugment"),
    ):
        if values.given(name) and values[name] != KEYS[name].default and not has_effect:
            raise ConfigError(
                f"{values.shown(name)} has no effect with {values.shown('data.augmentation')}; "
                f"set data.augmentation to {wanted} or leave it out"
            )


def _check_run(values: Values) -> None:
    if values["optim.nesterov"] and values["optim.name"] != "sgd":
        raise ConfigError(
            f"optim.nesterov needs optim.name sgd, not {values['optim.name']}; "
            "leave --nesterov out or use --optimizer sgd"
        )
    raport = values["run.raport_file"]
    if raport is not None and posixpath.normpath(raport).split("/")[0] in _RUN_FILES:
        raise ConfigError(
            f"run.raport_file {raport!r} ({values.origins['run.raport_file']}) is a file that the "
            "run itself writes in its folder; name another file, such as raport.json"
        )
    if values["run.checkpoint"] is not None and values["run.resume"] is None:
        raise ConfigError(
            f"{values.shown('run.checkpoint')} chooses among the checkpoints of a run: name the "
            "run with --from RUN or --resume RUN"
        )
    for name in ("run.early_stopping_patience", "run.stop_at_top1"):
        if values[name] is not None and not values["run.validate"]:
            raise ConfigError(
                f"{name} ({values.origins[name]}) needs validations and run.validate is false "
                f"({values.origins['run.validate']}); leave one of them out"
            )


def _check_schedule(values: Values) -> None:
    epochs = values["schedule.epochs"]
    if values["schedule.warmup_epochs"] > epochs:
        raise ConfigError(
            f"{values.shown('schedule.epochs')} is shorter than "
            f"{values.shown('schedule.warmup_epochs')}; "
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
