"""``launch``: list, explain, emit or run named configurations."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from image_classification.cli.command_line import CommandParser, completed_by, version_line
from image_classification.cli.listing import LISTS, listing, render_explanation, render_listing
from image_classification.config.catalogue import load_catalogue
from image_classification.config.from_run import read_run_folder
from image_classification.config.keys import KEYS, Override, read_setting
from image_classification.config.names import read_name
from image_classification.config.options import OPTIONS, Option, read_option
from image_classification.config.resolve import LayeredRun, read_run
from image_classification.config.schema import MODES, PRECISIONS, RunNames
from image_classification.core.errors import EXIT_USER, ConfigError, nearest, unknown
from image_classification.core.program import command, launch_words, show, shown_while
from image_classification.core.types import DevicesFound
from image_classification.data.loaders import BACKENDS

EMIT_KINDS = ("slurm", "kubernetes", "torchrun")
_USAGE = """\
{launch} --model M --precision P \\
           --mode MODE --platform PLATFORM [--recipe R] [DATA] [options]
       {launch} --from RUN [DATA] [options]
       {launch} … --explain [--json]
       {launch} … --emit KIND
       {launch} --list [WHAT] [--json]"""

_EXAMPLES = """\
examples:
  {launch} --model resnet50 --precision AMP \\
      --mode convergence --platform GPU --recipe 90e /data/imagenet
  {launch} --model resnet18 --precision FP32 \\
      --mode convergence --platform CPU demo
  {launch} --model resnet50 --precision AMP \\
      --mode convergence --platform DGX1V --explain
  {launch} --from runs/NAME --mode evaluate
"""
_SHORT_HELP = f"""\
Train or measure an image classification model by the names of a run.

{_EXAMPLES}
--list shows the names, --list platforms what each is; --help shows all options.
"""
# Titles of --help by section of the settings; single settings below.
_GROUPS = {
    "data": "data",
    "batch": "batch and optimization",
    "optim": "batch and optimization",
    "schedule": "batch and optimization",
    "loss": "batch and optimization",
    "mixing": "batch and optimization",
    "ema": "batch and optimization",
    "model": "model and precision",
    "precision": "model and precision",
    "platform": "devices",
    "run": "run control",
    "run.max_restarts": "devices",
    "run.collective_timeout_s": "devices",
    "run.log_every_steps": "output and checkpoints",
    "run.raport_file": "output and checkpoints",
    "run.trackers": "output and checkpoints",
    "run.workspace": "output and checkpoints",
    "run.topk": "output and checkpoints",
    "run.save_checkpoints": "output and checkpoints",
    "run.save_every": "output and checkpoints",
    "run.keep_checkpoints": "output and checkpoints",
    "run.checkpoint_name": "output and checkpoints",
}


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
    base: tuple[Override, ...] = ()

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
            base=self.base,
        )


def main(argv: Sequence[str]) -> int:
    """Run ``launch`` with ``argv``; return the exit code. Raises UserError."""
    if not argv and "_ARGCOMPLETE" not in os.environ:
        print(_SHORT_HELP.format(launch=_launch_command()), end="", file=sys.stderr)
        return EXIT_USER
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
        epilog=_EXAMPLES.format(launch=_launch_command()),
        allow_abbrev=False,
    )
    parser.set_defaults(given=[])
    parser.add_argument(
        "--version", action="version", version=version_line(), help="show the versions and exit"
    )
    names = parser.add_argument_group("names (see --list)")
    named = {
        "model": names.add_argument(
            "--model",
            "--arch",
            "-a",
            metavar="M",
            action="append",
            default=[],
            help="network, such as resnet50",
        ),
        "precision": names.add_argument("--precision", metavar="P", help=", ".join(PRECISIONS)),
        "platform": names.add_argument(
            "--platform",
            metavar="PLATFORM",
            help="machine: GPU (any NVIDIA GPUs), CPU, or a published one such as DGX1V",
        ),
        "recipe": names.add_argument(
            "--recipe", metavar="R", help="length of the training and mixup (default: as published)"
        ),
    }
    for kind, action in named.items():
        completed_by(action, partial(_fitting_names, kind))
    mode = names.add_argument("--mode", metavar="MODE", help=", ".join(MODES))
    completed_by(mode, MODES)
    names.add_argument(
        "--from",
        dest="from_run",
        metavar="RUN",
        help="folder of an earlier run, for all names, settings and data that are not given: "
        "continues it; with --mode evaluate, evaluates its best checkpoint",
    )
    names.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="folder with train/ and val/ or with class folders, or demo, or synthetic (default: "
        "the platform's)",
    )
    what = parser.add_argument_group("instead of running")
    list_what = what.add_argument(
        "--list", dest="list_what", nargs="?", const="all", metavar="WHAT", help=", ".join(LISTS)
    )
    completed_by(list_what, LISTS)
    what.add_argument("--explain", action="store_true", help="print the resolved configuration")
    what.add_argument("--json", action="store_true", help="with --list or --explain: print JSON")
    emit = what.add_argument(
        "--emit",
        metavar="KIND",
        help=f"print a job file or command that starts the run: {', '.join(EMIT_KINDS)}",
    )
    completed_by(emit, EMIT_KINDS)
    titles = dict.fromkeys(_GROUPS.values())
    groups = {title: parser.add_argument_group(title) for title in titles}
    settings = parser.add_argument_group("other settings")
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
        "--cfg_file", "--cfg-file", metavar="FILE", help="configuration file (default: configs.yml)"
    )
    names.add_argument("--amp", action="store_true", help="the same as --precision AMP")
    names.add_argument("--evaluate", action="store_true", help="the same as --mode evaluate")
    groups["output and checkpoints"].add_argument(
        "--open",
        dest="opens_page",
        action="store_true",
        help="show report.html in the browser at the end of the run",
    )
    settings.add_argument("--jit", metavar="NAME", help="only 'no': TorchScript is not supported")
    configured = _configured_keys()
    for option in OPTIONS:
        kwargs: dict[str, Any] = {"action": "append_const", "const": (option, None)}
        if option.metavar:
            kwargs = {"action": "append", "metavar": option.metavar}
            kwargs["type"] = partial(_option_argument, option)
        key = KEYS[option.key]
        group = groups[_GROUPS.get(key.name) or _GROUPS[key.section]]
        text = option.help.replace("%", "%%")
        more = []
        listed = all(word in text for word in key.choices)
        if option.metavar and option.convert is None and not listed:
            more.append(f"one of {', '.join(key.choices)}")
        if option.metavar and key.name not in configured and key.default not in (None, ()):
            more.append(f"default: {key.default}")
        if more:
            text += f" ({'; '.join(more)})"
        action = group.add_argument(*option.flags, dest="given", help=text, **kwargs)
        if key.choices:
            completed_by(action, key.choices)
    return parser


def _launch_command() -> str:
    """Return the words that start ``launch``, for examples."""
    words = command("launch")
    return f"python {words}" if words == "launch.py" else words


def _configured_keys() -> set[str]:
    """Return the settings that configurations set, whose defaults are theirs."""
    catalogue = load_catalogue()
    layers = [catalogue.defaults, *catalogue.recipes.values(), *catalogue.modes.values()]
    layers += [*catalogue.precisions.values()]
    layers += [block.settings for block in catalogue.platforms.values()]
    layers += [entry.block.settings for entry in catalogue.entries.values()]
    return {key for layer in layers for key in layer} - {"run.log_every_steps"}


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
    run = read_run_folder(Path(args.from_run)) if args.from_run is not None else None
    if run is not None:
        _fill_names(args, run.names, config_file)
    names = _names(args, config_file)
    overrides, notes = _settings(args, names["mode"])
    if args.mode and (note := read_name("mode", args.mode, MODES)[1]):
        notes.insert(0, note)
    base: list[Override] = []
    if run is not None:
        notes += _complete_names(names, config_file)
        recipe, more = _recipe_of(run.names, names, config_file)
        args.recipe = recipe
        notes += more
        given = {override.key for override in overrides} | ({"data.path"} if args.data else set())
        base = run.settings(RunNames(**names, recipe=run.names.recipe), given, config_file)
        begin, more = run.start(names["mode"], given)
        overrides, notes = [*overrides, *begin], [*notes, *run.notes, *more]
    return Request(
        **names,
        base=tuple(base),
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
        raise ConfigError(_missing(names, args.data, config_file))
    return names


def _missing(names: dict[str, str], data: str | None, config_file: Path | None) -> str:
    """Return the message for missing names, with a whole command that has those given."""
    missing = [name for name, value in names.items() if not value]
    catalogue = load_catalogue(config_file)
    valid = listing(catalogue)
    given: dict[str, str] = {}
    for name, value in names.items():
        with suppress(ConfigError):
            if value:
                given[name] = read_name(name, value, valid[f"{name}s"])[0]
    example = {"model": "resnet50", "precision": "AMP", "mode": "convergence", "platform": "GPU"}
    runs = [
        {**dataclasses.asdict(run), "mode": given.get("mode", example["mode"])}
        for run in catalogue.runs()
    ]
    fitting = [run for run in runs if given.items() <= run.items()] or runs
    best = max(fitting, key=lambda run: sum(run[name] == word for name, word in example.items()))
    words = " ".join(f"--{name} {best[name]}" for name in example)
    folder = data or ("demo" if best["platform"] == "CPU" else "/data/imagenet")
    *others, last = [f"--{name}" for name in missing]
    text = f"{', '.join(others)} and {last} are missing (--list shows the names)"
    if not others:
        # Of the names that have a run with those given.
        names_of_runs = dict.fromkeys(run[missing[0]] for run in fitting)
        choices = MODES if missing == ["mode"] else names_of_runs
        text = f"{last} is missing (valid: {', '.join(choices)})"
    return f"{text}; for example: {_launch_command()} {words} {shlex.quote(folder)}"


def _fill_names(args: argparse.Namespace, names: RunNames, config_file: Path | None) -> None:
    """Take the names that the command line leaves out from an earlier run (``--from``)."""
    catalogue = load_catalogue(config_file)
    for name, given, valid in (
        ("model", args.model[-1:], catalogue.models),
        ("recipe", [args.recipe], catalogue.recipes),
    ):
        earlier = getattr(names, name)
        if given and given[0] and read_name(name, given[0], (*valid, earlier))[0] != earlier:
            raise ConfigError(
                f"--{name} {given[0]} contradicts --from {args.from_run}, a run of {earlier}; "
                f"leave --{name} out"
            )
    args.model, args.recipe = [names.model], names.recipe
    args.platform = args.platform or names.platform
    if not args.amp:
        args.precision = args.precision or names.precision
    if not args.evaluate:
        args.mode = args.mode or names.mode


def _recipe_of(
    earlier: RunNames, names: Mapping[str, str], config_file: Path | None
) -> tuple[str | None, list[str]]:
    """Return the earlier run's recipe, or None and a note if the new platform does not have it."""
    catalogue = load_catalogue(config_file)
    entry = catalogue.find(names["model"], names["platform"], names["precision"])
    if earlier.recipe in entry.recipes:
        return earlier.recipe, []
    note = (
        f"{names['model']} {names['platform']} {names['precision']} has no recipe "
        f"{earlier.recipe}: the settings are those of the earlier run"
    )
    return None, [note]


def _complete_names(names: dict[str, str], config_file: Path | None) -> list[str]:
    """Write platform and precision as the configuration file does; return notes about it."""
    catalogue, notes = load_catalogue(config_file), []
    about = {name: block.about for name, block in catalogue.platforms.items() if block.about}
    for kind, valid in (("platform", catalogue.platforms), ("precision", catalogue.precisions)):
        names[kind], note = read_name(kind, names[kind], valid, about)
        notes += [note] if note else []
    return notes


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
