"""Names, recipe, overrides and the devices there are -> one frozen, explained RunConfig.

Order of the layers, later ones win: schema and ``defaults`` < precision < platform < the
model's configuration (its entry) < recipe < mode < command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classification.config.catalogue import Block, Catalogue, Entry, load_catalogue
from image_classification.config.checks import KEYS, check_idle, check_together
from image_classification.config.placement import accumulation, formula, largest_per_device, place
from image_classification.config.provenance import Override, Values
from image_classification.config.schema import (
    MODES,
    SECTIONS,
    RunConfig,
    RunNames,
)
from image_classification.core.errors import ConfigError, unknown
from image_classification.core.types import DevicesFound

NO_UPDATE_MODES = ("benchmark_inference", "benchmark_data", "evaluate")
"""Modes without an optimizer step, which no batch arithmetic can stop."""


def resolve(
    model: str,
    precision: str,
    mode: str,
    platform: str,
    recipe: str | None = None,
    *,
    data: str | None = None,
    overrides: Mapping[str, Any] | Sequence[Override] = (),
    config_file: Path | None = None,
    available: DevicesFound | None = None,
    world_size: int | None = None,
    num_nodes: int = 1,
    notes: Sequence[str] = (),
) -> RunConfig:
    """Resolve a run's names to its configuration.

    recipe: None is the entry's default. data: a folder, ``demo`` or ``synthetic``; None is the
    platform's. overrides: key -> value, or `Override` with the user's own words for the origin.
    available: the devices of this node; None leaves the platform as published. world_size,
    num_nodes: of a world already joined. notes: further lines for ``warnings``.

    Raises:
        ConfigError: an unknown name, key or value, names that do not go together, or a global
            batch that cannot be met. DeviceError: a GPU platform and no GPU.
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

    values = _layers(catalogue, entry, names)
    own = _as_overrides(overrides)
    if data is not None:
        own.insert(0, Override("data.path", data, "DATA on the command line"))
    values.put_overrides(own)
    missing = values.missing()
    if missing:
        raise ConfigError(
            f"{catalogue.name}: {model} {platform} {precision} leaves {', '.join(missing)} open; "
            "its entry must set them"
        )
    _keep_resize_margin(values)
    warnings = [*notes]
    warnings += _choose_backend(values)
    warnings += _choose_arithmetic(values)
    published_world = values.underneath("platform.num_devices") * values.underneath(
        "platform.num_nodes"
    )
    warnings += place(values, available, world_size, num_nodes)
    warnings += _settle_batch(values, mode, published_world)
    check_together(values.values(), values.origins())
    check_idle(values.values(), values.origins(), {override.key for override in own})
    blocks = (catalogue.platforms[platform], entry.block, entry.recipes[recipe])
    warnings += [f"assumption: {line}" for line in _collect(blocks, "assumptions")]
    return _freeze(values, names, tuple(warnings), tuple(_collect(blocks, "sources")))


def _as_overrides(overrides: Mapping[str, Any] | Sequence[Override]) -> list[Override]:
    if isinstance(overrides, Mapping):
        return [Override(key, value, "overrides argument") for key, value in overrides.items()]
    return list(overrides)


def _collect(blocks: Sequence[Block], what: str) -> list[str]:
    lines: list[str] = []
    for block in blocks:
        lines += block.sources if what == "sources" else block.assumptions
    return list(dict.fromkeys(lines))


def _layers(catalogue: Catalogue, entry: Entry, names: RunNames) -> Values:
    values, file = Values(), catalogue.name
    values.put_layer(catalogue.defaults, file, "defaults")
    values.put_layer(catalogue.precisions[names.precision], file, f"precision {names.precision}")
    values.put_layer(
        catalogue.platforms[names.platform].settings, file, f"platform {names.platform}"
    )
    entry_name = f"{names.model} {names.platform} {names.precision}"
    values.put_layer(entry.block.settings, file, entry_name)
    recipe_name = f"recipe {names.recipe}"
    values.put_layer(catalogue.recipes[names.recipe], file, recipe_name)
    values.put_layer(entry.recipes[names.recipe].settings, file, f"{recipe_name} of {entry_name}")
    values.put_layer(catalogue.modes.get(names.mode, {}), file, f"mode {names.mode}")
    values.put("model.name", names.model, "--model")
    values.put("precision.name", names.precision, "--precision")
    values.put("platform.name", names.platform, "--platform")
    values.put("run.mode", names.mode, "--mode")
    return values


def _choose_backend(values: Values) -> list[str]:
    path, backend = values["data.path"], values["data.backend"]
    if path == "synthetic" and backend != "synthetic":
        if values.given("data.backend"):
            raise ConfigError(
                f"data.path is synthetic ({values.origin('data.path')}) and data.backend is "
                f"{backend} ({values.origin('data.backend')}); leave one of them out"
            )
        origin = values.origin("data.path")
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
    """Another crop keeps its distance to the validation resize, 32 px in the published runs."""
    if values.changed("data.image_size") and not values.given("data.resize"):
        size, before, resize = (
            values["data.image_size"],
            values.underneath("data.image_size"),
            values["data.resize"],
        )
        values.put(
            "data.resize", size + resize - before, f"formula: {size} + ({resize} - {before})"
        )


def _choose_arithmetic(values: Values) -> list[str]:
    """AMP is float16 with loss scaling on a GPU and bfloat16 where float16 is not fast."""
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


def _settle_batch(values: Values, mode: str, published_world: int) -> list[str]:
    world = values["platform.num_devices"] * values["platform.num_nodes"]
    per_device, global_batch = values["batch.per_device"], values["batch.global"]
    notes = []
    if global_batch is None:
        global_batch = per_device * world
        origin = f"{values.origin('batch.global')}: {per_device} x {world}"
        values.put("batch.global", global_batch, origin)
    elif mode in NO_UPDATE_MODES and global_batch % (per_device * world):
        global_batch = per_device * world
        origin = f"formula: {per_device} x {world}, as {mode} makes no optimizer step"
        values.put("batch.global", global_batch, origin)
    elif world != published_world and not values.given("batch.per_device"):
        fitting = largest_per_device(global_batch, per_device, world)
        if fitting is not None and fitting != per_device:
            origin = (
                f"formula: the largest up to {per_device} that divides {global_batch} / {world}"
            )
            values.put("batch.per_device", fitting, origin)
            notes.append(
                f"{fitting} images a device instead of {per_device}, so that {world} devices "
                f"make the global batch of {global_batch}; batch normalization sees them apart"
            )
            per_device = fitting
    count = accumulation(global_batch, per_device, world)
    values.put("batch.accumulation", count, formula(global_batch, per_device, world))
    return notes


def _freeze(
    values: Values, names: RunNames, warnings: tuple[str, ...], sources: tuple[str, ...]
) -> RunConfig:
    content = values.values()
    sections = {
        section: cls(**{k.field: content[k.name] for k in KEYS.values() if k.section == section})
        for section, cls in SECTIONS.items()
    }
    return RunConfig(
        names=names,
        **sections,
        provenance=values.origins(),
        warnings=warnings,
        sources=sources,
    )


@dataclass(frozen=True)
class Request:
    """What a command line of ``launch.py`` asks for."""

    model: str = ""
    precision: str = ""
    mode: str = ""
    platform: str = ""
    recipe: str | None = None
    data: str | None = None
    overrides: tuple[Override, ...] = ()
    notes: tuple[str, ...] = ()
    config_file: Path | None = None
    list_what: str | None = None
    explain: bool = False
    json: bool = False
    emit: str | None = None

    def resolve(
        self,
        available: DevicesFound | None = None,
        world_size: int | None = None,
        num_nodes: int = 1,
    ) -> RunConfig:
        """Return the configuration asked for, on these devices (None: as published).

        Raises:
            ConfigError, DeviceError: see `resolve`.
        """
        return resolve(
            self.model,
            self.precision,
            self.mode,
            self.platform,
            self.recipe,
            data=self.data,
            overrides=self.overrides,
            config_file=self.config_file,
            available=available,
            world_size=world_size,
            num_nodes=num_nodes,
            notes=self.notes,
        )
