"""Resolve a run's names and the user's settings into one `RunConfig`.

Later layers win: schema and ``defaults`` < precision < platform < the model's configuration (its
entry) < recipe < mode < command line. `read_run` reads the layers once; `LayeredRun.on` applies
the devices.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classification.config.catalogue import Catalogue, Entry, Layer, load_catalogue
from image_classification.config.checks import check_together
from image_classification.config.keys import KEYS, Override, settable_key
from image_classification.config.placement import place
from image_classification.config.schema import MODES, SECTIONS, RunConfig, RunNames
from image_classification.core.errors import ConfigError, unknown
from image_classification.core.types import DevicesFound


class Values:
    """The settings of a run while its layers are applied: later layers win."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._given: set[str] = set()
        self._inherited: dict[str, Any] = {}
        for key in KEYS.values():
            if key.has_default:
                self.put(key.name, key.default, "default (schema)")

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set a value, replacing that of an earlier layer."""
        self._values[key] = value
        self._origins[key] = origin

    def put_layer(self, layer: Layer, file: str, name: str) -> None:
        """Apply a named layer of a configuration file."""
        for key, setting in layer.items():
            self.put(key, setting.value, f"{file}:{setting.line}, {name}")

    def put_overrides(self, overrides: Iterable[Override]) -> None:
        """Apply the user's settings.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range, a key that
                cannot be set, or two different values for a key.
        """
        for override in overrides:
            value, where = override.value, override.origin
            key = settable_key(override.key, where)
            if not (key.name == "batch.global" and value is None):
                value = key.check(value, where)
            if key.name in self._given and self[key.name] != value:
                raise ConfigError(
                    f"{key.name} is given twice: {self[key.name]} ({self.origin(key.name)}) and "
                    f"{value} ({where}); keep one"
                )
            self.replace(Override(key.name, value, where))

    def replace(self, override: Override) -> None:
        """Apply one checked setting of the user, in place of an earlier one."""
        self._inherited.setdefault(override.key, self._values.get(override.key))
        self._given.add(override.key)
        self.put(override.key, override.value, override.origin)

    def given(self, key: str) -> bool:
        """Return whether the user set ``key`` for this run."""
        return key in self._given

    def changed(self, key: str) -> bool:
        """Return whether the user set ``key`` to another value than the layers have."""
        return key in self._given and self[key] != self.inherited(key)

    def inherited(self, key: str) -> Any:
        """Return the layers' value of ``key``, without the user's setting."""
        return self._inherited.get(key, self._values.get(key))

    def origin(self, key: str) -> str:
        """Return where the value of ``key`` came from."""
        return self._origins[key]

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def missing(self) -> list[str]:
        """Return the keys that no layer set, without computed ones."""
        return [k.name for k in KEYS.values() if not k.computed and k.name not in self._values]

    def check(self) -> None:
        """Raise ConfigError where values do not fit one another."""
        check_together(self._values, self._origins, self._given)

    def copy(self) -> Values:
        """Return an independent copy."""
        values = copy.copy(self)
        values._values, values._origins = dict(self._values), dict(self._origins)
        values._given, values._inherited = set(self._given), dict(self._inherited)
        return values

    def sections(self) -> dict[str, Any]:
        """Return section -> its dataclass with these values."""
        return {
            section: cls(**{k.field: self[k.name] for k in KEYS.values() if k.section == section})
            for section, cls in SECTIONS.items()
        }

    def origins(self) -> dict[str, str]:
        """Return key -> origin, in the schema's order."""
        return {name: self._origins[name] for name in KEYS}


def without_line(origin: str) -> str:
    """Return ``origin`` without a line number: moving a line does not change a value."""
    return re.sub(r"^([^,]*?):\d+, ", r"\1, ", origin)


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
        values.replace(override)
        return LayeredRun(self.names, values, self.warnings, self.assumptions, self.sources)

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
        return RunConfig(
            names=self.names,
            **values.sections(),
            provenance=values.origins(),
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
) -> LayeredRun:
    """Apply the layers of a run's names and the user's settings.

    recipe: None is the entry's default. data: a folder, ``demo`` or ``synthetic``; None is the
    platform's. overrides: key -> value, or `Override` with its origin. notes: first ``warnings``.

    Raises:
        ConfigError: an unknown name, key or value, or names or values that do not fit together.
    """
    catalogue = load_catalogue(config_file)
    if mode not in MODES:
        raise ConfigError(unknown("mode", mode, MODES))
    entry = catalogue.find(model, platform, precision)
    if recipe is None:
        recipe = entry.default_recipe
    if recipe not in entry.recipes:
        kind = f"recipe of {model} {platform} {precision}"
        raise ConfigError(unknown(kind, recipe, entry.recipes))
    names = RunNames(model, precision, mode, platform, recipe)

    values = _apply_layers(catalogue, entry, names)
    if isinstance(overrides, Mapping):
        overrides = [Override(key, value, "overrides argument") for key, value in overrides.items()]
    if data is not None:
        overrides = [Override("data.path", data, "DATA on the command line"), *overrides]
    values.put_overrides(overrides)
    missing = values.missing()
    if missing:
        raise ConfigError(
            f"{catalogue.name}: {model} {platform} {precision} has no value for "
            f"{', '.join(missing)}; its entry must set them"
        )
    _keep_resize_margin(values)
    warnings = (*notes, *_choose_backend(values), *_choose_dtype(values))
    values.check()
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
    available: DevicesFound | None = None,
    world_size: int | None = None,
    num_nodes: int = 1,
    **settings: Any,
) -> RunConfig:
    """Return the configuration of a run: `read_run` with ``settings``, then `LayeredRun.on`.

    Raises:
        ConfigError, DeviceError: see there.
    """
    run = read_run(model, precision, mode, platform, recipe, **settings)
    return run.on(available, world_size, num_nodes)


def _apply_layers(catalogue: Catalogue, entry: Entry, names: RunNames) -> Values:
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
    values = Values()
    for name, layer in layers.items():
        values.put_layer(layer, catalogue.name, name)
    values.put("model.name", names.model, "--model")
    values.put("precision.name", names.precision, "--precision")
    values.put("platform.name", names.platform, "--platform")
    values.put("run.mode", names.mode, "--mode")
    return values


def _choose_backend(values: Values) -> list[str]:
    path, backend = values["data.path"], values["data.backend"]
    if path == "synthetic" and backend != "synthetic":
        origin = values.origin("data.path")
        if values.given("data.backend"):
            raise ConfigError(
                f"data.path is synthetic ({origin}) and data.backend is "
                f"{backend} ({values.origin('data.backend')}); leave one of them out"
            )
        values.put("data.backend", "synthetic", f"data.path is synthetic: {origin}")
    elif backend == "synthetic" and path != "synthetic":
        origin = values.origin("data.backend")
        values.put("data.path", "synthetic", f"data.backend is synthetic: {origin}")
        if values.given("data.path"):
            return [
                f"{path} is not read, as the data are synthetic ({origin}); "
                "--data-backend pytorch reads it"
            ]
    return []


def _keep_resize_margin(values: Values) -> None:
    """Keep the difference of resize and crop (32 px in the published runs) for another crop."""
    if values.changed("data.image_size") and not values.given("data.resize"):
        size, before = values["data.image_size"], values.inherited("data.image_size")
        resize = values["data.resize"]
        origin = f"formula: {size} + ({resize} - {before})"
        values.put("data.resize", size + resize - before, origin)


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
