"""All pictures of one run or several: chosen, drawn and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from image_classification.core.files import explained
from image_classification.core.types import RunReport
from image_classification.reporting.pictures.costs import accuracy_cost
from image_classification.reporting.pictures.curves import (
    accuracy,
    learning_rate,
    loss,
    throughput,
)
from image_classification.reporting.pictures.inference import latency
from image_classification.reporting.pictures.over_time import over_time
from image_classification.reporting.pictures.paint import paint
from image_classification.reporting.pictures.picture import LeftOut, Picture
from image_classification.reporting.pictures.scaling import scaling
from image_classification.reporting.pictures.source import RunData, with_labels, with_records
from image_classification.reporting.pictures.steps import step_time

FORMATS = ("png", "svg")

_KINDS: tuple[Callable[[Sequence[RunData]], Picture | LeftOut], ...] = (
    loss,
    accuracy,
    learning_rate,
    throughput,
    over_time,
    step_time,
    latency,
    accuracy_cost,
    scaling,
)


@dataclass(frozen=True)
class Drawn:
    """A picture with its SVG document, empty where none was asked for."""

    picture: Picture
    svg: str


@dataclass(frozen=True)
class Gallery:
    """What was drawn, what was not and why, in the order they are shown."""

    drawn: tuple[Drawn, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    files: tuple[Path, ...] = ()


def plan(runs: Sequence[RunData]) -> list[Picture | LeftOut]:
    """Choose the pictures that ``runs`` have data for, in the order they are shown.

    runs: at least one; several are overlaid, told apart by their labels.
    """
    labelled = with_labels(runs) if len(runs) > 1 else list(runs)
    return [kind(labelled) for kind in _KINDS]


def draw(runs: Sequence[RunData], folder: Path, formats: Sequence[str] = FORMATS) -> Gallery:
    """Write ``NAME.png`` and ``NAME.svg`` for every picture there is something to draw for.

    folder: made when missing. formats: of `FORMATS`.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    drawn: list[Drawn] = []
    left_out: list[LeftOut] = []
    files: list[Path] = []
    for planned in plan(runs):
        if isinstance(planned, LeftOut):
            left_out.append(planned)
            continue
        contents = paint(planned, formats)
        drawn.append(Drawn(planned, contents.get("svg", b"").decode("utf-8")))
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for kind, content in contents.items():
                path = folder / f"{planned.name}.{kind}"
                path.write_bytes(content)
                files.append(path)
    return Gallery(tuple(drawn), tuple(left_out), tuple(files))


def draw_run(folder: Path, report: RunReport) -> Gallery:
    """Draw the pictures of the run in ``folder`` into its ``plots/``.

    Raises:
        WorkspaceError: its records cannot be read, or the pictures not written.
    """
    return draw([with_records(folder, report)], folder / "plots")
