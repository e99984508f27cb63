"""``python -m image_classification report plots``: pictures of one run, or of several overlaid."""

from __future__ import annotations

from pathlib import Path

from image_classification.cli.command_line import CommandParser
from image_classification.cli.report_parser import show_text
from image_classification.core.errors import EXIT_DONE, ConfigError, unknown
from image_classification.reporting.page.run_page import write_pictures_page
from image_classification.reporting.pictures.draw import FORMATS, draw
from image_classification.reporting.pictures.source import read_run


def build_parser() -> CommandParser:
    """Return the parser; its errors are ConfigError."""
    parser = CommandParser(
        "report plots",
        description="Draw the pictures of a run, or of several over one another: curves, "
        "throughput and power, step times, latency, accuracy against arithmetic, scaling. What a "
        "run has no data for is left out, with the reason.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or a report.json")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="where to write NAME.png, NAME.svg and pictures.html (default for one run: its "
        "plots folder)",
    )
    parser.add_argument(
        "--format",
        metavar="F[,F]",
        default=",".join(FORMATS),
        help="png, svg or both; pictures.html comes with svg (default: both)",
    )
    return parser


def main(argv: list[str]) -> int:
    """Draw; print every file written and what was left out; return the exit code.

    Raises:
        ConfigError: the command line cannot be understood.
        WorkspaceError: a run cannot be read, or the folder cannot be written.
    """
    arguments = build_parser().parse_args(argv)
    formats = _formats(arguments.format)
    runs = [read_run(Path(name)) for name in arguments.runs]
    gallery = draw(runs, _folder(arguments.output, arguments.runs), formats)
    files = [*gallery.files]
    if gallery.drawn and "svg" in formats:
        title = "Pictures of " + ", ".join(run.label for run in runs)
        files.append(write_pictures_page(gallery, files[0].parent, title))
    left_out = [f"not drawn: {entry.title}: {entry.why}" for entry in gallery.left_out]
    show_text("\n".join([*map(str, files), *left_out]))
    return EXIT_DONE


def _formats(text: str) -> list[str]:
    asked = [name.strip() for name in text.split(",") if name.strip()]
    for name in asked:
        if name not in FORMATS:
            raise ConfigError(unknown("picture format", name, FORMATS))
    if not asked:
        raise ConfigError(f"--format names no format: choose of {', '.join(FORMATS)}")
    return [name for name in FORMATS if name in asked]


def _folder(output: str | None, runs: list[str]) -> Path:
    if output is not None:
        return Path(output)
    if len(runs) > 1:
        raise ConfigError(f"pictures of {len(runs)} runs have no folder of their own: name one, -o")
    run = Path(runs[0])
    return (run if run.is_dir() else run.parent) / "plots"
