"""Choose the published figures that a run is compared with."""

from __future__ import annotations

from collections.abc import Iterator

from image_classification.config.schema import RunConfig
from image_classification.reporting.figures import (
    ACCURACY,
    INFERENCE,
    TRAINING,
    with_batch,
)
from image_classification.reporting.published.load import (
    PublishedRow,
    PublishedRun,
    load_runs,
    rows_of,
)

# Platforms whose published rows have the name of another one.
_SAME_PLATFORM = {"DGX1V-16G": "DGX1V"}

# How well a row fits a run; the lowest rank is chosen.
_SOURCED, _NAMED, _OTHER_LENGTH, _ELSEWHERE, _ONLY_BESIDE = range(5)


def rows_for(config: RunConfig) -> list[PublishedRow]:
    """Choose the rows that a run is compared with, one for each figure it can measure.

    First come the publications that the configuration names as its sources. If they do not have a
    figure, or have another number of epochs, it is the newest publication of the same model,
    platform and precision (and number of epochs, for accuracy). Published command lines turn the
    250-epoch configuration into the 90-epoch run, so the number of epochs decides, not the name of
    the recipe. Of rows for several numbers of devices it is the one with this run's, else the one
    with the most. Inference: each published batch size that this run measures.
    """
    chosen: dict[str, tuple[int, PublishedRow]] = {}
    for rank, row in _ranked(config):
        figure = with_batch(row.figure, row.batch)
        best = chosen.get(figure)
        if rank == _ONLY_BESIDE:
            continue
        if best is None or rank < best[0] or (rank == best[0] and _nearer(row, best[1], config)):
            chosen[figure] = (rank, row)
    return [row for _, row in chosen.values()]


def other_rows_for(config: RunConfig) -> list[PublishedRow]:
    """Return the same figures of other publications, those with known settings first.

    A value that several documents print is returned once.
    """
    chosen = {with_batch(row.figure, row.batch): row for row in rows_for(config)}
    taken = {_printed(row) for row in chosen.values()}
    others = []
    for rank, row in sorted(_ranked(config), key=lambda ranked: ranked[0]):
        best = chosen.get(with_batch(row.figure, row.batch))
        if best is None or row.num_devices != best.num_devices:
            continue
        if rank == _OTHER_LENGTH or _printed(row) in taken:
            continue
        taken.add(_printed(row))
        others.append(row)
    return others


def _printed(row: PublishedRow) -> tuple[str, int | None, float, float | None]:
    return row.figure, row.batch, row.value, row.spread


def _nearer(row: PublishedRow, best: PublishedRow, config: RunConfig) -> bool:
    """Return whether ``row`` has a better number of devices than another row of its run."""
    counts = [(one.num_devices == config.world_size, one.num_devices or 0) for one in (row, best)]
    return row.id == best.id and counts[0] > counts[1]


def _ranked(config: RunConfig) -> Iterator[tuple[int, PublishedRow]]:
    inference = config.run.mode == "benchmark_inference"
    figures = INFERENCE if inference else TRAINING
    runs = {run.id: run for run in load_runs()}
    sourced = [runs[name] for name in config.sources if name in runs]
    named = [
        run for run in runs.values() if run.id not in config.sources and _has_names(run, config)
    ]
    for run in (*sourced, *named):
        for row in rows_of(run):
            if row.figure not in figures or row.requests is not None or row.same_as is not None:
                continue
            if inference and row.batch not in config.run.inference_batches:
                continue
            rank = _rank(row, run.id in config.sources, config)
            if rank is not None:
                yield rank, row


def _rank(row: PublishedRow, sourced: bool, config: RunConfig) -> int | None:
    """Rank a row; None for an accuracy of another number of epochs, unless it is a source."""
    accuracy = row.figure in ACCURACY
    length = row.run.recipe.epochs
    if accuracy and not sourced and length not in (None, config.schedule.epochs):
        return None
    if row.elsewhere is not None or (accuracy and row.epochs is None):
        return _ELSEWHERE if sourced else _ONLY_BESIDE
    if accuracy and length != config.schedule.epochs:
        return _OTHER_LENGTH
    return _SOURCED if sourced else _NAMED


def _has_names(run: PublishedRun, config: RunConfig) -> bool:
    names, named = config.names, run.named
    return (
        named is not None
        and named.model == names.model
        and named.platform == _SAME_PLATFORM.get(names.platform, names.platform)
        and named.precision == names.precision
    )
