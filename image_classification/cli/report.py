"""``report combine | compare | history | plots | submit``: evaluate finished runs."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from os.path import exists, isdir
from pathlib import Path
from typing import Any

from rich.console import Console

from image_classification.cli.command_line import CommandParser, complete_command
from image_classification.config.keys import find_key
from image_classification.core.errors import (
    EXIT_DONE,
    EXIT_REGRESSED,
    ConfigError,
    WorkspaceError,
    unknown,
)
from image_classification.core.files import write_atomically
from image_classification.core.program import command, mute_stdout, open_page, show
from image_classification.reporting.compare.combine import Combined, combined_json, print_combined
from image_classification.reporting.compare.groups import group_runs
from image_classification.reporting.compare.history import (
    AGAINST,
    history_json,
    print_history,
    read_history,
)
from image_classification.reporting.compare.regression import (
    THRESHOLDS,
    Comparison,
    FolderComparison,
    Thresholds,
    compare_folders,
    compare_runs,
    comparison_json,
    folders_json,
    print_comparison,
    print_folders,
)
from image_classification.reporting.report import REPORT_NAME
from image_classification.reporting.run_folder import read_run

PUBLISHED_FILE = "image_classification/reporting/published/published.yml"
PICTURE_FORMATS = ("png", "svg")


def main(argv: list[str]) -> int:
    """Run one command; return the exit code. Raises UserError."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {command('report COMMAND …')}\n")
        for name, (summary, _) in COMMANDS.items():
            print(f"  {name:<9} {summary}")
        print("\nEach has its own --help.")
        return EXIT_DONE
    if not argv:
        complete_command(COMMANDS, "report")
        raise ConfigError(f"report: name a command ({', '.join(COMMANDS)}): see report --help")
    if argv[0] not in COMMANDS:
        raise ConfigError(unknown("report command", argv[0], COMMANDS))
    _, run = COMMANDS[argv[0]]
    return run(argv[1:])


def _combine(argv: list[str]) -> int:
    parser = CommandParser(
        "report combine",
        description="Mean and spread of runs of one name over their seeds, with the verdict on "
        "the mean; AMP's speed-up and weak scaling if the runs for it are given.",
    )
    _add_runs(parser, "a run's folder, or its report.json")
    _add_output(parser, "write combined.json and combined.html to this folder")
    _add_open(parser, "combined.html")
    parser.add_argument(
        "--vendor", action="store_true", help="print the vendor table too (always in -o)"
    )
    _add_json(parser)
    _add_ignore(parser)
    arguments = parser.parse_args(argv)
    _check_open(arguments, "combined.html")
    runs = [read_run(path) for path in arguments.runs]
    combined = Combined.of(group_runs(runs, arguments.ignore))
    content = combined_json(combined)
    if arguments.output is not None:
        from image_classification.reporting.page import combined_page
        from image_classification.reporting.page.several import combined_gallery

        gallery = combined_gallery(combined.groups)
        _write_page(arguments, "combined", content, combined_page(combined, gallery))
    _show(
        arguments,
        content,
        lambda console: print_combined(console, combined, vendor=arguments.vendor),
    )
    _open(arguments, "combined.html")
    return EXIT_DONE


def _compare(argv: list[str]) -> int:
    parser = CommandParser(
        "report compare",
        description="Compare a run with an earlier one of the same name, as in another container "
        "release, or every run of a folder with the one of its name in another folder. Exits "
        f"with {EXIT_REGRESSED} if a figure got worse by more than its threshold.",
    )
    parser.add_argument(
        "old", metavar="OLD", type=Path, help="a run's folder or report.json, or a folder of runs"
    )
    parser.add_argument("new", metavar="NEW", type=Path, help="the same for the later run")
    _add_output(parser, "write compare.json and compare.html, with charts, to this folder")
    _add_open(parser, "compare.html")
    _add_json(parser)
    _add_thresholds(parser)
    _add_ignore(parser)
    arguments = parser.parse_args(argv)
    _check_open(arguments, "compare.html")
    old, new = arguments.old, arguments.new
    options = (_thresholds(arguments), arguments.ignore)
    # os.path, because pathlib raises for a path that is too long or not permitted.
    if all(isdir(path) and not exists(path / REPORT_NAME) for path in (old, new)):
        folders = compare_folders(old, new, *options)
        _write_comparison(arguments, folders_json(folders), folders)
        _show(arguments, folders_json(folders), lambda console: print_folders(console, folders))
        _open(arguments, "compare.html")
        return EXIT_REGRESSED if folders.regressed else EXIT_DONE
    found = compare_runs(read_run(old), read_run(new), *options)
    _write_comparison(arguments, comparison_json(found), found)
    _show(arguments, comparison_json(found), lambda console: print_comparison(console, found))
    _open(arguments, "compare.html")
    return EXIT_REGRESSED if found.regressed else EXIT_DONE


def _write_comparison(
    arguments: argparse.Namespace, content: Any, found: Comparison | FolderComparison
) -> None:
    if arguments.output is not None:
        from image_classification.reporting.page.several import compare_page

        _write_page(arguments, "compare", content, compare_page(found))


def _history(argv: list[str]) -> int:
    parser = CommandParser(
        "report history",
        description="List all runs below DIR by name and time, with what they ran on, and flag "
        "figures that are worse than before. Exits with "
        f"{EXIT_REGRESSED} if the newest run of any name is worse.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder that holds runs")
    _add_output(parser, "write history.json and history.html, with charts, to this folder")
    _add_open(parser, "history.html")
    _add_json(parser)
    parser.add_argument(
        "--against",
        choices=AGAINST,
        default="best",
        help="the earlier run that each is compared with: the best of all, or the previous "
        "(default: best)",
    )
    _add_thresholds(parser)
    _add_ignore(parser)
    arguments = parser.parse_args(argv)
    _check_open(arguments, "history.html")
    history = read_history(
        arguments.folder, _thresholds(arguments), arguments.ignore, arguments.against
    )
    if arguments.output is not None:
        from image_classification.reporting.page.several import history_page

        _write_page(arguments, "history", history_json(history), history_page(history))
    _show(arguments, history_json(history), lambda console: print_history(console, history))
    _open(arguments, "history.html")
    return EXIT_REGRESSED if history.regressed else EXIT_DONE


def _plots(argv: list[str]) -> int:
    """Draw; print every file written and what was left out."""
    from image_classification.reporting.page import write_pictures_page
    from image_classification.reporting.pictures.draw import draw
    from image_classification.reporting.pictures.source import read_run

    parser = CommandParser(
        "report plots",
        description="Draw the pictures of a run, or of several overlaid: curves, throughput and "
        "power, step times, latency, accuracy against arithmetic, scaling. Pictures that a run "
        "has no data for are left out, with the reason.",
    )
    _add_runs(parser, "folder of a run, or a report.json")
    _add_output(
        parser,
        "where to write NAME.png, NAME.svg and pictures.html (default for one run: its plots "
        "folder)",
    )
    _add_open(parser, "pictures.html")
    parser.add_argument(
        "--format",
        metavar="F[,F]",
        default=",".join(PICTURE_FORMATS),
        help="png, svg or both; pictures.html comes with svg (default: both)",
    )
    arguments = parser.parse_args(argv)
    formats = _picture_formats(arguments.format)
    if arguments.open and "svg" not in formats:
        raise ConfigError("--open shows pictures.html, which comes with svg: add it to --format")
    runs = [read_run(path) for path in arguments.runs]
    folder = arguments.output
    if folder is None:
        first, *others = arguments.runs
        if others:
            raise ConfigError(
                f"pictures of {len(runs)} runs have no default folder: give one with -o"
            )
        folder = (first if first.is_dir() else first.parent) / "plots"
    gallery = draw(runs, folder, formats)
    files = [*gallery.files]
    if gallery.drawn and "svg" in formats:
        title = "Pictures of " + ", ".join(run.label for run in runs)
        files.append(write_pictures_page(gallery, folder, title))
    left_out = [f"not drawn: {entry.title}: {entry.why}" for entry in gallery.left_out]
    _show_text("\n".join([*map(str, files), *left_out]))
    if arguments.open and gallery.drawn:
        print(open_page(folder / "pictures.html"), file=sys.stderr)
    return EXIT_DONE


def _submit(argv: list[str]) -> int:
    """Print a run's row and entry of the published figures."""
    from image_classification.reporting.published.submit import submission

    parser = CommandParser(
        "report submit",
        description="Print a measured run as a row of the model pages (Markdown) and as an entry "
        "of published.yml (YAML), to be added by a pull request. Runs whose figures would mislead "
        "are refused: other hardware, data or settings than the name says, or too short.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, or its report.json")
    parser.add_argument("--by", metavar="NAME", help="who measured it, for the list of sources")
    parser.add_argument("--yaml", action="store_true", help="print the entry alone, to append it")
    arguments = parser.parse_args(argv)
    found = submission(read_run(arguments.run), arguments.by)
    if arguments.yaml:
        _show_text(found.yaml())
        return EXIT_DONE
    lines = [found.markdown(), "", f"# Append to {PUBLISHED_FILE}, then run `make pages`:"]
    _show_text("\n".join([*lines, found.yaml()]))
    return EXIT_DONE


def _picture_formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PICTURE_FORMATS:
            raise ConfigError(unknown("picture format", name, PICTURE_FORMATS))
    if not names:
        raise ConfigError(f"--format names no format: give {' or '.join(PICTURE_FORMATS)}")
    return [name for name in PICTURE_FORMATS if name in names]


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "combine": (
        "runs over seeds, precisions or devices: mean, spread, verdict, speed-up, scaling",
        _combine,
    ),
    "compare": ("one run in two environments: which figures regressed", _compare),
    "history": ("all runs below a folder in order of time, with what regressed", _history),
    "plots": ("pictures of one run, or of several overlaid", _plots),
    "submit": ("a measured run as a row of the model pages and an entry of published.yml", _submit),
}


def _add_runs(parser: CommandParser, help: str) -> None:
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help=help)


def _add_output(parser: CommandParser, help: str) -> None:
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, help=help)


def _write_page(arguments: argparse.Namespace, name: str, content: Any, page: str) -> None:
    """Write ``NAME.json`` and ``NAME.html`` to the folder of ``-o``."""
    folder = arguments.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(
            f"cannot make {folder}: {error.strerror or error}; give another -o"
        ) from error
    write_atomically(folder / f"{name}.json", _json_text(content) + "\n")
    write_atomically(folder / f"{name}.html", page)


def _check_open(arguments: argparse.Namespace, page: str) -> None:
    if arguments.open and arguments.output is None:
        raise ConfigError(f"--open shows {page}: say with -o where to write it")


def _open(arguments: argparse.Namespace, page: str) -> None:
    if arguments.open:
        print(open_page(arguments.output / page), file=sys.stderr)


def _add_open(parser: CommandParser, page: str) -> None:
    parser.add_argument("--open", action="store_true", help=f"show {page} in the browser")


def _add_json(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _add_ignore(parser: CommandParser) -> None:
    parser.add_argument(
        "--ignore",
        metavar="KEY",
        type=lambda key: find_key(key, "--ignore").name,
        action="append",
        default=[],
        help="a setting that may differ, such as data.workers; can be repeated",
    )


def _add_thresholds(parser: CommandParser) -> None:
    for name, threshold in THRESHOLDS.items():
        parser.add_argument(
            f"--threshold-{name}",
            metavar=threshold.unit.upper(),
            type=_threshold,
            default=threshold.default,
            help=f"{threshold.what}: how many {threshold.unit} worse is a regression (default: "
            f"{threshold.default:g})",
        )


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def _thresholds(arguments: argparse.Namespace) -> Thresholds:
    return {name: getattr(arguments, f"threshold_{name}") for name in THRESHOLDS}


def _show(
    arguments: argparse.Namespace, content: Any, print_tables: Callable[[Console], None]
) -> None:
    """Print JSON with ``--json``, else tables as wide as the terminal, in color only there."""
    if arguments.json:
        _show_text(_json_text(content))
        return
    console = Console(highlight=False)
    with console.capture() as captured:
        print_tables(console)
    _show_text(captured.get().rstrip("\n"))


def _json_text(content: Any) -> str:
    return json.dumps(content, indent=1, allow_nan=False)


def _show_text(text: str) -> None:
    """Print ``text``; a closed pipe changes no exit code."""
    try:
        show(text)
    except BrokenPipeError:
        mute_stdout()
