"""``launch``: list, explain, emit or run named configurations."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from image_classification.cli.command_line import CommandParser, completed_by
from image_classification.config.catalogue import Catalogue, ListedRun, load_catalogue
from image_classification.config.keys import KEYS, Override, explanation, read_setting
from image_classification.config.names import read_name
from image_classification.config.options import OPTIONS, Option, read_option
from image_classification.config.resolve import LayeredRun, read_run
from image_classification.config.schema import MODES, PRECISIONS, RunConfig
from image_classification.core.errors import ConfigError, nearest, unknown
from image_classification.core.program import command, launch_words, show, shown_while
from image_classification.core.types import DevicesFound
from image_classification.data.loaders import BACKENDS

EMIT_KINDS = ("slurm", "kubernetes", "torchrun")
LISTS = ("models", "platforms", "precisions", "modes", "recipes", "runs")

_USAGE = """\
{launch} --model M --precision P --mode MODE --platform PLATFORM [--recipe R] [DATA] [options]
       {launch} <names> --explain [--json]
       {launch} <names> [DATA] [options] --emit slurm|kubernetes|torchrun
       {launch} --list [models|platforms|precisions|modes|recipes|runs] [--json]"""


@dataclass(frozen=True)
class Request:
    """A parsed command line."""

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
    opens_page: bool = False

    def read(self) -> LayeredRun:
        """Return the requested run before its devices are known. Raises ConfigError."""
        return read_run(
            self.model,
            self.precision,
            self.mode,
            self.platform,
            self.recipe,
            data=self.data,
            overrides=self.overrides,
            config_file=self.config_file,
            notes=self.notes,
        )


def main(argv: Sequence[str]) -> int:
    """Run ``launch`` with ``argv``; return the exit code. Raises UserError."""
    request = parse(argv)
    if request.list_what is not None:
        catalogue = load_catalogue(request.config_file)
        show(render_listing(catalogue, request.list_what, request.json))
        return 0
    run = request.read()
    if request.explain:
        show(render_explanation(run.on(_visible_devices(run)), request.json))
        return 0
    if request.emit is not None:
        if run["platform.num_devices"] is None:
            raise ConfigError("--emit needs the number of devices per node; add --devices N")
        from image_classification.cli.emit import render_emission

        config, words = run.on(), launch_words()
        show(render_emission(request.emit, config, argv, words, request.config_file))
        return 0
    # Imports torch, which --list, --explain and --emit do not need.
    with shown_while("loading PyTorch"):
        from image_classification.launch.run import start_run

    return start_run(run, launch_words(), argv, request.opens_page)


def _visible_devices(run: LayeredRun) -> DevicesFound | None:
    """Return this machine's devices if the run is on all of them; else, or without any, None."""
    if run["platform.num_devices"] is not None or run["platform.device"] == "cpu":
        return None
    # Imports torch.
    from image_classification.devices.accelerator import get_accelerator

    found = get_accelerator(run["platform.device"]).found()
    return found if found.count else None


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
    named = {
        "model": names.add_argument(
            "--model", "--arch", "-a", metavar="M", action="append", default=[]
        ),
        "precision": names.add_argument("--precision", metavar="P"),
        "platform": names.add_argument("--platform", metavar="PLATFORM"),
        "recipe": names.add_argument(
            "--recipe", metavar="R", help="default: the recipe of the published configuration"
        ),
    }
    for kind, action in named.items():
        completed_by(action, partial(_fitting_names, kind))
    mode = names.add_argument("--mode", metavar="MODE", help=" ".join(MODES))
    completed_by(mode, MODES)
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
    completed_by(list_what, LISTS)
    what.add_argument("--explain", action="store_true", help="print the resolved configuration")
    what.add_argument("--json", action="store_true", help="with --list or --explain: print JSON")
    emit = what.add_argument(
        "--emit",
        metavar="KIND",
        help=f"print a job file or command that starts the run: {' '.join(EMIT_KINDS)}",
    )
    completed_by(emit, EMIT_KINDS)
    settings = parser.add_argument_group("settings")
    setting = settings.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="section.key=value",
        help="set any setting that --explain shows",
    )
    completed_by(setting, [f"{key}=" for key in KEYS])
    settings.add_argument(
        "--cfg_file", "--cfg-file", metavar="FILE", help="configuration file; default: configs.yml"
    )
    settings.add_argument("--amp", action="store_true", help="the same as --precision AMP")
    settings.add_argument("--evaluate", action="store_true", help="the same as --mode evaluate")
    settings.add_argument(
        "--open",
        dest="opens_page",
        action="store_true",
        help="show report.html in the browser at the end of the run",
    )
    settings.add_argument("--jit", metavar="NAME", help="no; TorchScript is not supported")
    for option in OPTIONS:
        kwargs: dict[str, Any] = {"action": "append_const", "const": (option, None)}
        if option.metavar:
            kwargs = {"action": "append", "metavar": option.metavar}
            kwargs["type"] = partial(_option_argument, option)
        action = settings.add_argument(*option.flags, dest="given", help=option.help, **kwargs)
        if choices := KEYS[option.key].choices:
            completed_by(action, choices)
    return parser


def _option_argument(option: Option, text: str) -> tuple[Option, str]:
    return option, text


def _fitting_names(kind: str, parsed: argparse.Namespace) -> list[str]:
    """Return the names of ``kind`` that have a run together with the names already given."""
    given = {
        "model": parsed.model[-1] if parsed.model else None,
        "platform": parsed.platform,
        "precision": parsed.precision,
        "recipe": parsed.recipe,
    }
    del given[kind]
    runs = [
        run
        for run in load_catalogue().runs()
        if all(name in (None, getattr(run, other)) for other, name in given.items())
    ]
    return list(dict.fromkeys(getattr(run, kind) for run in runs))


def parse(argv: Sequence[str]) -> Request:
    """Parse a command line, without the program's name.

    Raises ConfigError with the nearest valid word, or SystemExit(0) after ``--help``.
    """
    _check_text(argv)
    parser = build_parser()
    parser.complete()
    args, extra = parser.parse_known_args(argv)
    if extra:
        raise ConfigError(_unexpected(parser, extra[0]))
    config_file = Path(args.cfg_file) if args.cfg_file is not None else None
    if args.list_what is not None:
        if args.list_what not in ("all", *LISTS):
            raise ConfigError(unknown("list", args.list_what, LISTS))
        others = set(vars(args)) - {"list_what", "json", "cfg_file"}
        if any(getattr(args, name) not in (None, False, []) for name in others):
            raise ConfigError("--list goes with --json and --cfg_file only; leave the rest out")
        return Request(config_file=config_file, list_what=args.list_what, json=args.json)
    if args.json and not args.explain:
        raise ConfigError("--json goes with --list or --explain; add one of them")
    if args.emit is not None and args.emit not in EMIT_KINDS:
        raise ConfigError(unknown("kind to --emit", args.emit, EMIT_KINDS))
    if args.emit is not None and args.explain:
        raise ConfigError("--emit and --explain print different things; leave one out")
    if args.opens_page and (args.explain or args.emit is not None):
        raise ConfigError("--open shows the report of a run; leave it out, or run")
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
        opens_page=args.opens_page,
    )


def _check_text(argv: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8: they cannot be written to config.yml or a report."""
    for argument in map(os.fsencode, argv):
        shown = argument.decode(errors="backslashreplace")
        if shown.encode() != argument:
            raise ConfigError(
                f"the argument {shown} is not UTF-8 text; rename the file or folder it names"
            )


def _unexpected(parser: CommandParser, word: str) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; DATA is one folder, and is given already"
    option = word.partition("=")[0]
    flags = [flag for action in parser._actions for flag in action.option_strings]
    # An abbreviation most likely means the option that starts with it.
    longer = [flag for flag in flags if flag.startswith(option)]
    hint = min(longer, key=len) if longer else nearest(option, flags)
    meant = f"; did you mean {hint}?" if hint else ""
    return f"unknown option {option}{meant} (--help lists them, --set reaches every setting)"


def _names(args: argparse.Namespace, config_file: Path | None) -> dict[str, str]:
    if len(set(args.model)) > 1:
        raise ConfigError(f"--model is given as {' and as '.join(args.model)}; keep one")
    precision, mode = args.precision, args.mode
    if mode:
        mode = read_name("mode", mode, MODES)[0]
    if args.amp:
        if precision and read_name("precision", precision, PRECISIONS)[0] != "AMP":
            raise ConfigError(f"--amp contradicts --precision {precision}; leave one out")
        precision = "AMP"
    if args.evaluate:
        if mode not in (None, "convergence", "evaluate"):
            raise ConfigError(f"--evaluate contradicts --mode {mode}; leave one out")
        mode = "evaluate"
    model = args.model[-1] if args.model else None
    names = {"model": model, "precision": precision, "mode": mode, "platform": args.platform}
    missing = [name for name, value in names.items() if not value]
    if missing:
        lists = listing(load_catalogue(config_file))
        options = [f"--{name} (valid: {', '.join(lists[f'{name}s'])})" for name in missing]
        raise ConfigError(f"missing {', '.join(options)}")
    return names


def _settings(args: argparse.Namespace, mode: str) -> tuple[list[Override], list[str]]:
    # The last of a repeated option counts.
    last: dict[str, tuple[Option, str | None]] = {
        option.name: (option, text) for option, text in args.given
    }
    if "--dynamic-loss-scale" in last:
        last.pop("--static-loss-scale", None)
    read = [read_option(option, text, mode) for option, text in last.values()]
    overrides = [override for override, _ in read if override is not None]
    overrides += {setting.key: setting for setting in map(read_setting, args.settings)}.values()
    for override in overrides:
        if override.key == "data.backend" and override.value not in BACKENDS:
            raise ConfigError(unknown("data backend", override.value, BACKENDS))
    return overrides, [note for _, note in read if note]


def render_explanation(config: RunConfig, as_json: bool = False) -> str:
    """Return a text table of key, value and origin, or the JSON of `explanation`."""
    content = explanation(config)
    if as_json:
        return json.dumps(content, indent=1)
    tables = [[("key", "value", "where from")]]
    for section, values in content["config"].items():
        names = {f"{section}.{key}": value for key, value in values.items()}
        tables.append([(n, _text(value), config.provenance[n]) for n, value in names.items()])
    widths = [max(len(row[i]) for table in tables for row in table) for i in range(2)]
    lines = [" ".join(f"--{name} {value}" for name, value in content["name"].items())]
    for table in tables:
        lines.append("")
        lines += [f"{key:<{widths[0]}}  {value:<{widths[1]}}  {at}" for key, value, at in table]
    for title, texts in (
        ("published runs that this configuration reproduces:", config.sources),
        ("notes:", config.warnings),
    ):
        if texts:
            lines += ["", title, *(f"  {text}" for text in texts)]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def listing(catalogue: Catalogue, what: str = "all") -> dict[str, Any]:
    """Return list name -> names, for one list or all; a run is a mapping."""
    lists: dict[str, Any] = {
        "models": list(catalogue.models),
        "platforms": list(catalogue.platforms),
        "precisions": list(catalogue.precisions),
        "modes": list(MODES),
        "recipes": list(catalogue.recipes),
        "runs": [dataclasses.asdict(run) for run in catalogue.runs()],
    }
    return lists if what == "all" else {what: lists[what]}


def render_listing(catalogue: Catalogue, what: str = "all", as_json: bool = False) -> str:
    """Return the text of ``--list WHAT``, or its JSON."""
    content = listing(catalogue, what)
    if as_json:
        return json.dumps(content, indent=1)
    if what == "all":
        lists = [f"{name}: {' '.join(names)}" for name, names in content.items() if name != "runs"]
        return "\n".join([*lists, "", *_runs_table(catalogue.runs())])
    return "\n".join(_runs_table(catalogue.runs()) if what == "runs" else content[what])


def _runs_table(runs: Iterable[ListedRun]) -> list[str]:
    recipes: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        text = f"{run.recipe}*" if run.default else run.recipe
        recipes.setdefault((run.model, run.platform, run.precision), []).append(text)
    rows = [("model", "platform", "precision", "recipes (* default)")]
    rows += [(*names, " ".join(texts)) for names, texts in recipes.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
