"""``--from RUN``: names and settings from the ``config.yml`` in a run's folder.

Settings that follow from the devices are found again, and so are those of a mode, platform or
precision that the command line replaces.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from image_classification.config.catalogue import MAX_BYTES, load_catalogue
from image_classification.config.keys import KEYS, Override
from image_classification.config.schema import RunNames
from image_classification.core.errors import ConfigError

FILE_NAME = "config.yml"

# Where a run is, and which weights it begins with: `RunFolder.continued` sets them.
_OF_THE_START = ("run.workspace", "run.resume", "run.checkpoint", "run.allow_changes")
_WEIGHTS = ("run.resume", "run.checkpoint", "model.pretrained_from_file")
_PLACED = ("platform.num_devices", "platform.num_nodes", "batch.per_device", "data.resize")
_OF_THE_PLATFORM = {key for key in KEYS if key.startswith("platform.")} | {
    "batch.per_device",
    "batch.fit_memory",
}
# Of a data set: not taken for another one.
_OF_THE_DATA = ("data.format", "data.val_fraction", "data.split_file", "data.exif_orientation")
# Unless the user set them, they were found in the run that was evaluated or continued, whose folder
# may have moved.
_OF_THE_SPLIT = ("data.val_fraction", "data.split_file")
_NAMES = ("model.name", "precision.name", "platform.name", "run.mode")
_BY_USER = ("--set ", "on the command line", "overrides argument")
_TRAINING = "convergence"
_WITH_WEIGHTS = ("evaluate", "benchmark_inference")


@dataclass(frozen=True)
class RunFolder:
    """A run that was started before.

    values, origins: its settings, and where each came from. notes: settings that are left out.
    """

    path: Path
    names: RunNames
    values: dict[str, Any]
    origins: dict[str, str]
    notes: tuple[str, ...]

    @property
    def has_checkpoints(self) -> bool:
        """Whether the run saved a checkpoint."""
        folder = self.path / "checkpoints"
        return folder.is_dir() and any(not p.name.startswith(".") for p in folder.glob("*/"))

    def settings(
        self, names: RunNames, given: Collection[str], config_file: Path | None
    ) -> list[Override]:
        """Return the run's settings for a run of these names.

        given: keys that the command line sets, which are left out.
        """
        mode_layer = load_catalogue(config_file).modes.get(names.mode, {})
        replaced = [
            f", {kind} {getattr(self.names, kind)}"
            for kind in ("mode", "platform", "precision")
            if getattr(self.names, kind) != getattr(names, kind)
        ]
        is_synthetic = mode_layer.get("data.backend", ("",))[0] == "synthetic"
        own_names = (names.model, names.precision, names.platform, names.mode)
        named = dict(zip(_NAMES, own_names, strict=True))
        found = []
        for key, value in self.values.items():
            origin, section = self.origins.get(key, ""), key.partition(".")[0]
            by_user = any(text in origin for text in _BY_USER)
            left_out = (
                key in given
                or (key in named and named[key] != value)
                or key in (*_OF_THE_START, "model.pretrained_from_file")
                or (key in _PLACED and not by_user and not re.match(r".+:\d+, ", origin))
                or any(origin.endswith(layer) for layer in replaced)
                or (names.platform != self.names.platform and key in _OF_THE_PLATFORM)
                or (names.precision != self.names.precision and section == "precision")
                or ("data.path" in given and key in _OF_THE_DATA)
                or (key in _OF_THE_SPLIT and not by_user)
            )
            if names.mode != self.names.mode:
                left_out |= is_synthetic and key == "data.path"
                left_out |= not by_user and key in mode_layer
            if not left_out:
                found.append(Override(key, value, self._origin(key)))
        return found

    def start(self, mode: str, given: Collection[str]) -> tuple[list[Override], list[str]]:
        """Return where the new run begins, and notes: the run's checkpoints, or its own weights.

        A training continues in the run's folder, or from its checkpoints in the one given.

        Raises:
            ConfigError: the run has no checkpoint, and used no weights.
        """
        origin, notes = f"--from {self.path}", []
        if "run.resume" in given or "model.pretrained_from_file" in given:
            return [], []
        own = {k: self.values[k] for k in _WEIGHTS if self.values.get(k) not in (None, "auto")}
        if "run.resume" not in own:
            own.pop("run.checkpoint", None)
        own = {key: value for key, value in own.items() if key not in given}
        if mode == _TRAINING and self.names.mode == _TRAINING and "run.workspace" not in given:
            begin: dict[str, Any] = {"run.workspace": str(self.path), "run.resume": "auto"}
            if not self.has_checkpoints:
                begin |= own
                where = ", ".join(map(str, own.values())) or "the beginning"
                notes = [f"{self.path} has no checkpoint: its training starts from {where}"]
            return [Override(key, value, origin) for key, value in begin.items()], notes
        if mode != _TRAINING and mode not in _WITH_WEIGHTS:
            return [], []
        if self.has_checkpoints:
            return [Override("run.resume", str(self.path), origin)], []
        if mode == _TRAINING or not own:
            verb = "continue" if mode == _TRAINING else "evaluate"
            raise ConfigError(f"{self.path} has no checkpoint to {verb}: name another run")
        return [Override(key, value, self._origin(key)) for key, value in own.items()], []

    def _origin(self, key: str) -> str:
        origin = self.origins.get(key) if key not in _NAMES else None
        return f"{self.path / FILE_NAME}" + (f" ({origin})" if origin else "")


def read_run_folder(path: Path) -> RunFolder:
    """Read the ``config.yml`` of the run at ``path``.

    Raises:
        ConfigError: no run's folder, or its file is damaged.
    """
    file = path / FILE_NAME
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--from {path}: no run there ({FILE_NAME}: {error.strerror}): name a run's folder, "
            "such as one in runs/"
        ) from error
    except UnicodeDecodeError as error:
        raise _damaged(file, "not UTF-8") from error
    if len(text) > MAX_BYTES:
        raise _damaged(file, "too large")
    try:
        content = yaml.safe_load(text)
        names = RunNames(**content["name"])
        sections = {k: v for k, v in content.items() if k not in ("name", "sources", "warnings")}
        values = {
            f"{s}.{key}": value for s, keys in sections.items() for key, value in keys.items()
        }
    except (yaml.YAMLError, RecursionError) as error:
        raise _damaged(file, "not YAML") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    known = {k: v for k, v in values.items() if k in KEYS and not KEYS[k].computed}
    notes = [
        f"{file}: this release has no setting {key}, which is left out"
        for key in values
        if key not in KEYS
    ]
    return RunFolder(
        path,
        names,
        known,
        _read_origins(text.splitlines()),
        tuple(notes),
    )


def _read_origins(lines: Sequence[str]) -> dict[str, str]:
    """Return the origin of each setting, which `keys.to_yaml` writes as a comment."""
    origins, section = {}, ""
    for line in lines:
        if line[:1].isalpha():
            section = line.partition(":")[0]
            continue
        setting, separator, origin = line.rpartition("  # ")
        if separator:
            # A continued run's own origins name this file already.
            inner = re.fullmatch(rf".*{re.escape(FILE_NAME)} \((.*)\)", origin)
            origins[f"{section}.{setting.partition(':')[0].strip()}"] = (
                inner[1] if inner else origin
            )
    return origins


def _damaged(file: Path, why: str) -> ConfigError:
    return ConfigError(f"{file} is damaged ({why}): give the run's names and options instead")
