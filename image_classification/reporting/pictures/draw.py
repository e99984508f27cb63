"""Draw all pictures of one run or several, as files and as SVG elements of an HTML page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from image_classification.core.files import explained
from image_classification.reporting.pictures import benchmarks, curves
from image_classification.reporting.pictures.paint import paint
from image_classification.reporting.pictures.picture import COLORS, LeftOut, Picture
from image_classification.reporting.pictures.source import RunData, with_labels, with_records
from image_classification.reporting.report import RunReport

FORMATS = ("png", "svg")

_KINDS: tuple[Callable[[Sequence[RunData]], Picture | LeftOut], ...] = (
    curves.loss,
    curves.accuracy,
    curves.learning_rate,
    curves.throughput,
    curves.over_time,
    curves.step_time,
    benchmarks.latency,
    benchmarks.accuracy_cost,
    benchmarks.scaling,
)


@dataclass(frozen=True)
class Drawn:
    """A picture and its SVG document, which is empty if only PNG was asked for."""

    picture: Picture
    svg: str


@dataclass(frozen=True)
class Gallery:
    """The drawn pictures, those left out, and the files written."""

    drawn: tuple[Drawn, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    files: tuple[Path, ...] = ()


def plan(runs: Sequence[RunData]) -> list[Picture | LeftOut]:
    """Return the pictures of ``runs``, in the order they are shown; several runs are overlaid."""
    labeled = with_labels(runs) if len(runs) > 1 else list(runs)
    return [kind(labeled) for kind in _KINDS]


def draw(runs: Sequence[RunData], folder: Path, formats: Sequence[str] = FORMATS) -> Gallery:
    """Write ``NAME.png`` and ``NAME.svg`` of every picture that ``runs`` have data for.

    folder: created if missing. formats: any of `FORMATS`.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    drawn: list[Drawn] = []
    left_out: list[LeftOut] = []
    files: list[Path] = []
    for picture in plan(runs):
        if isinstance(picture, LeftOut):
            left_out.append(picture)
            continue
        contents = paint(picture, formats)
        drawn.append(Drawn(picture, contents.get("svg", b"").decode("utf-8")))
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for kind, content in contents.items():
                path = folder / f"{picture.name}.{kind}"
                path.write_bytes(content)
                files.append(path)
    return Gallery(tuple(drawn), tuple(left_out), tuple(files))


def draw_run(folder: Path, report: RunReport) -> Gallery:
    """Draw the pictures of the run in ``folder`` into its ``plots/``.

    Raises:
        WorkspaceError: its records cannot be read, or the pictures cannot be written.
    """
    return draw([with_records(folder, report)], folder / "plots")


_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_ID = re.compile(r'(?<= id=")(?=[^"])|(?<=href="#)|(?<=url\(#)')
_COLOR = re.compile("|".join(COLORS.values()), re.IGNORECASE)
_VARIABLES = {value: f"var(--p-{name}, {value})" for name, value in COLORS.items()}


def inline_svg(drawn: Drawn) -> str:
    """Return the ``<svg>`` element with alternative text and ids unique within a page.

    Each color of `COLORS` becomes the CSS variable ``--p-NAME``, which a page may set for dark
    mode.
    """
    element = _METADATA.sub("", drawn.svg[drawn.svg.index("<svg") :])
    element = _ID.sub(f"{drawn.picture.name}-", element)
    element = _COLOR.sub(lambda match: _VARIABLES[match[0].lower()], element)
    alt = escape(drawn.picture.alt)
    return f'<svg role="img" aria-label="{alt}"{element.removeprefix("<svg")}'
