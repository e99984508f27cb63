"""The command line of ``launch.py`` -> a frozen `Request`; no argparse type goes further."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from image_classification.cli.emit.render import KINDS
from image_classification.cli.parser import CommandParser, completed_by
from image_classification.config.catalogue import load_catalogue
from image_classification.config.checks import KEYS
from image_classification.config.options import (
    OPTIONS,
    Option,
    read_setting,
    translate,
)
from image_classification.config.provenance import Override
from image_classification.config.resolve import Request
from image_classification.config.schema import MODES
from image_classification.core.errors import ConfigError, nearest, unknown
from image_classification.core.program import command
from image_classification.data.loaders.protocol import BACKENDS

LISTS = ("models", "platforms", "precisions", "modes", "recipes", "runs")

_USAGE = """\
{launch} --model M --precision P --mode MODE --platform PLATFORM [--recipe R] [DATA] [options]
       {launch} <names> --explain [--json]
       {launch} <names> [DATA] [options] --emit slurm|kubernetes|torchrun
       {launch} --list [models|platforms|precisions|modes|recipes|runs] [--json]"""


class _Given(argparse.Action):
    """Collect the published options in the order they are given."""

    def __init__(self, option: Option, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._option = option

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        text = str(values) if self._option.takes_value else None
        namespace.given.append((self._option, text))


def build_parser() -> CommandParser:
    """Return the parser of ``launch``."""
    parser = CommandParser(
        "launch",
        usage=_USAGE.format(launch=command("launch")),
        description="Reproduce a published ImageNet classification run by its names.",
        allow_abbrev=False,
    )
    parser.set_defaults(given=[])
    names = parser.add_argument_group("names (see --list)")
    named = (
        names.add_argument("--model", "--arch", "-a", metavar="M", action="append", default=[]),
        names.add_argument("--precision", metavar="P"),
        names.add_argument("--platform", metavar="PLATFORM"),
        names.add_argument(
            "--recipe", metavar="R", help="default: the published configuration's own"
        ),
    )
    mode = names.add_argument("--mode", metavar="MODE", help=" ".join(MODES))
    completed_by(mode, partial(_same, MODES))
    for kind, action in zip(("model", "precision", "platform", "recipe"), named, strict=True):
        completed_by(action, partial(_names_left, kind))
    names.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="folder with train/ and val/, or demo, or synthetic; default: the platform's",
    )
    what = parser.add_argument_group("instead of running")
    list_what = what.add_argument(
        "--list", dest="list_what", nargs="?", const="all", metavar="WHAT", help=" ".join(LISTS)
    )
    what.add_argument("--explain", action="store_true", help="show the resolved configuration")
    what.add_argument("--json", action="store_true", help="with --list or --explain: as JSON")
    emit = what.add_argument(
        "--emit", metavar="KIND", help=f"print how to start the run there: {' '.join(KINDS)}"
    )
    completed_by(list_what, partial(_same, LISTS))
    completed_by(emit, partial(_same, KINDS))
    settings = parser.add_argument_group("settings")
    setting = settings.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="section.key=value",
        help="any setting --explain shows",
    )
    completed_by(setting, partial(_same, [f"{key}=" for key in KEYS]))
    settings.add_argument(
        "--cfg_file", "--cfg-file", metavar="FILE", help="configurations; default: configs.yml"
    )
    settings.add_argument("--amp", action="store_true", help="the same as --precision AMP")
    settings.add_argument("--evaluate", action="store_true", help="the same as --mode evaluate")
    settings.add_argument("--jit", metavar="NAME", help="no; TorchScript is not supported")
    for option in OPTIONS:
        kwargs: dict[str, Any] = {"metavar": option.metavar} if option.takes_value else {"nargs": 0}
        action = settings.add_argument(
            *option.flags, action=_Given, option=option, dest="given", help=option.help, **kwargs
        )
        choices = KEYS[option.key].choices
        if choices is not None:
            completed_by(action, partial(_same, choices))
    return parser


def _same(words: Sequence[str], parsed: argparse.Namespace) -> Sequence[str]:
    return words


def _names_left(kind: str, parsed: argparse.Namespace) -> list[str]:
    """Return the names of one kind that go together with the names given before."""
    given = {
        "model": parsed.model[-1] if parsed.model else None,
        "platform": parsed.platform,
        "precision": parsed.precision,
        "recipe": parsed.recipe,
    }
    del given[kind]
    runs = load_catalogue().runs()
    fitting = (run for run in runs if all(n in (None, getattr(run, k)) for k, n in given.items()))
    return list(dict.fromkeys(getattr(run, kind) for run in fitting))


def parse(argv: Sequence[str]) -> Request:
    """Read a command line (without the program's name).

    Raises:
        ConfigError: an unknown option, name, key or value, with the nearest valid one; or a
            name that is missing. SystemExit(0): after ``--help``.
    """
    _check_text(argv)
    parser = build_parser()
    parser.complete()
    args, extra = parser.parse_known_args(argv)
    if extra:
        raise ConfigError(_unexpected(parser, extra))
    config_file = Path(args.cfg_file) if args.cfg_file is not None else None
    if args.list_what is not None:
        if args.list_what not in ("all", *LISTS):
            raise ConfigError(unknown("list", args.list_what, LISTS))
        if _anything_else(args):
            raise ConfigError("--list goes with --json and --cfg_file only; leave the rest out")
        return Request(config_file=config_file, list_what=args.list_what, json=args.json)
    if args.json and not args.explain:
        raise ConfigError("--json goes with --list or --explain; add one of them")
    if args.emit is not None and args.emit not in KINDS:
        raise ConfigError(unknown("kind to --emit", args.emit, KINDS))
    if args.emit is not None and args.explain:
        raise ConfigError("--emit and --explain each print their own; leave one out")
    if args.jit not in (None, "no"):
        raise ConfigError(
            f"--jit {args.jit}: TorchScript is deprecated in PyTorch and not supported; "
            "leave it out, or compile with --set model.compile=true"
        )
    names = _names(args, config_file)
    overrides, notes = _settings(args, names["mode"])
    return Request(
        **names,
        recipe=args.recipe,
        data=args.data,
        overrides=tuple(overrides),
        notes=tuple(notes),
        config_file=config_file,
        explain=args.explain,
        json=args.json,
        emit=args.emit,
    )


def _check_text(argv: Sequence[str]) -> None:
    """Refuse bytes that are no text: they could not be written to ``config.yml`` or a report."""
    for argument in map(os.fsencode, argv):
        shown = argument.decode(errors="backslashreplace")
        if shown.encode() != argument:
            raise ConfigError(
                f"the argument {shown} is not UTF-8 text; rename the file or folder it names"
            )


def _anything_else(args: argparse.Namespace) -> bool:
    flags = (args.model, args.settings, args.given, args.explain, args.amp, args.evaluate)
    texts = (args.precision, args.mode, args.platform, args.recipe, args.data, args.jit, args.emit)
    return any(flags) or any(text is not None for text in texts)


def _unexpected(parser: CommandParser, extra: Sequence[str]) -> str:
    first = extra[0]
    if not first.startswith("-"):
        return f"unexpected argument {first!r}; DATA is one folder, and is given already"
    option = first.partition("=")[0]
    flags = [flag for action in parser._actions for flag in action.option_strings]
    # A shortened option is most likely the one it begins.
    begun = [flag for flag in flags if flag.startswith(option)]
    hint = min(begun, key=len) if begun else nearest(option, flags)
    meant = f"; did you mean {hint}?" if hint else ""
    return f"unknown option {option}{meant} (--help lists them, --set reaches every setting)"


def _names(args: argparse.Namespace, config_file: Path | None) -> dict[str, str]:
    if len(set(args.model)) > 1:
        raise ConfigError(f"--model is given as {' and as '.join(args.model)}; keep one")
    precision, mode = args.precision, args.mode
    if args.amp:
        if precision not in (None, "AMP"):
            raise ConfigError(f"--amp contradicts --precision {precision}; leave one out")
        precision = "AMP"
    if args.evaluate:
        if mode not in (None, "convergence", "evaluate"):
            raise ConfigError(f"--evaluate contradicts --mode {mode}; leave one out")
        mode = "evaluate"
    given = {
        "model": args.model[-1] if args.model else None,
        "precision": precision,
        "mode": mode,
        "platform": args.platform,
    }
    missing = [name for name, value in given.items() if not value]
    if missing:
        catalogue = load_catalogue(config_file)
        valid = {
            "model": catalogue.models,
            "precision": catalogue.precisions,
            "mode": MODES,
            "platform": catalogue.platforms,
        }
        raise ConfigError(
            "missing "
            + ", ".join(f"--{name} (valid: {', '.join(valid[name])})" for name in missing)
        )
    return given


def _settings(args: argparse.Namespace, mode: str) -> tuple[list[Override], list[str]]:
    given: list[tuple[Option, str | None]] = args.given
    if any(option.name == "--dynamic-loss-scale" for option, _ in given):
        given = [pair for pair in given if pair[0].name != "--static-loss-scale"]
    # As with every command line, the last of a repeated option counts.
    last = {option.name: (option, text) for option, text in given}
    overrides: list[Override] = []
    notes: list[str] = []
    for option, text in last.values():
        settings, remarks = translate(option, text, mode)
        overrides += settings
        notes += remarks
    overrides += {setting.key: setting for setting in map(read_setting, args.settings)}.values()
    for override in overrides:
        if override.key == "data.backend" and override.value not in BACKENDS:
            raise ConfigError(unknown("data backend", override.value, BACKENDS))
    return overrides, notes
