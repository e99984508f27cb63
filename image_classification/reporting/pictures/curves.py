"""Loss, accuracy, learning rate and throughput over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from image_classification.reporting.pictures.picture import (
    LeftOut,
    Panel,
    Picture,
    Rule,
    Series,
    take,
    thinned,
)
from image_classification.reporting.pictures.source import RunData
from image_classification.reporting.pictures.style import (
    AVERAGED,
    INK,
    RAW,
    RESUMED,
    RUNS,
    TRAINING,
    Look,
)
from image_classification.reporting.published.verdict import Band

EPOCHS = "epochs done"
_CLOSE_POINTS = 0.5

# A quantity: kind and key of its records, its name, its look in a picture of one run. Among
# several runs the colour and the marker are the run's and the line alone tells the quantity.
_Quantity = tuple[str, str, str, Look]

_LOSS: tuple[_Quantity, ...] = (
    ("step", "loss", "training", TRAINING),
    ("validation", "loss", "validation", RAW),
    ("validation_ema", "loss", "validation, EMA", AVERAGED),
)
_RATE: tuple[_Quantity, ...] = (("step", "lr", "learning rate", TRAINING),)
_THROUGHPUT: tuple[_Quantity, ...] = (
    ("epoch", "images_per_s", "data wait included", TRAINING.lined("-")),
    ("epoch", "compute_images_per_s", "data wait left out", RAW),
)


def _accuracy(key: str) -> tuple[_Quantity, ...]:
    return (
        ("validation", key, "weights as trained", RAW.lined("-")),
        ("validation_ema", key, "EMA of the weights", AVERAGED),
    )


def loss(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Draw training and validation loss, of the weights and of their moving average."""
    panel = _panel(runs, "cross-entropy", _LOSS)
    return _picture(runs, "loss", "Loss", (panel,), _LOSS, "no loss was recorded")


def accuracy(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Draw top-1 and top-5 with the published values of comparable runs as bands."""
    panels = tuple(
        replace(
            _panel(runs, f"{name}, percent", _accuracy(key)),
            bands=_bands(runs, key),
        )
        for key, name in (("top1", "top-1"), ("top5", "top-5"))
    )
    panels = (*panels[:1], *_close_up(panels[0]), *panels[1:])
    drawn = tuple(panel for panel in panels if panel.series)
    title, why = "Validation accuracy", "nothing was validated"
    return _picture(runs, "accuracy", title, drawn, _accuracy("top1"), why)


def learning_rate(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Draw the schedule as it went."""
    panel = replace(_panel(runs, "learning rate", _RATE), y_from_zero=True)
    why = "no learning rate was recorded"
    return _picture(runs, "learning_rate", "Learning rate", (panel,), _RATE, why)


def throughput(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Draw images/s, each a mean over a whole epoch, with the published one as a band."""
    panel = replace(
        _panel(runs, "images/s", _THROUGHPUT),
        bands=_bands(runs, "train_images_per_s"),
        y_from_zero=True,
    )
    title, why = "Training throughput of each epoch", "no epoch was finished"
    return _picture(runs, "throughput", title, (panel,), _THROUGHPUT, why)


def _panel(runs: Sequence[RunData], y_label: str, quantities: Sequence[_Quantity]) -> Panel:
    series = []
    for run, look in zip(runs, take(RUNS, len(runs)), strict=True):
        for kind, key, name, own in quantities:
            points, _ = thinned(run.over_epochs(kind, key))
            if not points:
                continue
            x, y = zip(*points, strict=True)
            if len(runs) == 1:
                series.append(Series(name, x, y, own))
            else:
                shown = look.lined(own.line, filled=own.line == "-")
                series.append(Series(f"{run.label}, {name}", x, y, shown))
    return Panel(y_label, tuple(series), rules=_resumptions(runs), x_from_zero=True)


def _close_up(panel: Panel) -> tuple[Panel, ...]:
    """The same around the published values, which are too narrow to see in a whole curve."""
    if not panel.bands or not panel.series:
        return ()
    seen = [each.y[-1] for each in panel.series]
    low = min([*seen, *(band.low for band in panel.bands)])
    high = max([*seen, *(band.high for band in panel.bands)])
    room = max(high - low, 2 * _CLOSE_POINTS) / 2
    return (replace(panel, y_label="top-1, close up", y_limits=(low - room, high + room)),)


def _resumptions(runs: Sequence[RunData]) -> tuple[Rule, ...]:
    if len(runs) > 1:
        # Lines of several runs could not be told apart.
        return ()
    steps = runs[0].steps_per_epoch
    return tuple(Rule("resumed", at / steps, RESUMED) for at in runs[0].resumed_at if steps)


def _bands(runs: Sequence[RunData], figure: str) -> tuple[Band, ...]:
    found = {band: None for run in runs for band in run.bands(figure)}
    return tuple(found)


def _picture(
    runs: Sequence[RunData],
    name: str,
    title: str,
    panels: tuple[Panel, ...],
    quantities: Sequence[_Quantity],
    why: str,
) -> Picture | LeftOut:
    if not any(panel.series for panel in panels):
        return LeftOut(name, title, why)
    groups = [thinned(run.over_epochs(q[0], q[1]))[1] for run in runs for q in quantities]
    notes = []
    if max(groups) > 1:
        notes.append(f"Long curves are drawn as means of up to {max(groups)} records.")
    legend = None
    if len(runs) > 1:
        labels = [series.label for panel in panels for series in panel.series]
        legend = tuple(
            (run.label, look.lined("-"))
            for run, look in zip(runs, take(RUNS, len(runs)), strict=True)
            if any(label.startswith(f"{run.label}, ") for label in labels)
        )
        used = [q for q in quantities if any(label.endswith(f", {q[2]}") for label in labels)]
        if len(used) > 1:
            legend += tuple((q[2], Look(INK, q[3].line, width=1.2)) for q in used)
        missing = [run.label for run in runs if all(run.label != shown for shown, _ in legend)]
        notes += [f"{label}: {why}." for label in missing]
    return Picture(name, title, EPOCHS, panels, tuple(notes), legend)
