"""Which published figures a run is measured against."""

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

# Other names of one machine; the key is the one the published rows use.
_SAME_PLATFORM = {"DGX1V-16G": "DGX1V"}

# How well a row fits a run; the least is taken.
_SOURCED, _NAMED, _OTHER_LENGTH, _ELSEWHERE, _ONLY_BESIDE = range(5)


def rows_for(config: RunConfig) -> list[PublishedRow]:
    """Choose the rows a run is measured against, one for each figure it can measure.

    That of the publications its configuration names as its sources; where these have none of a
    figure, or their number of epochs is not this run's, the newest publication of the same model,
    platform and precision (and as many epochs, for accuracy). Published command lines turn the
    250-epoch configuration into the 90-epoch run, so the number of epochs decides, not the
    recipe's name. Where a run has throughput rows for several numbers of devices, the one with as
    many as this run, else the one with the most. Inference figures: for each batch size of the
    run that was published.
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
    """Return what other publications say of the same figures, those with known settings first.

    A value that two documents print alike is taken once.
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
    """Of one run's rows for several numbers of devices, the one to prefer."""
    return row.id == best.id and _nearness(row, config) > _nearness(best, config)


def _nearness(row: PublishedRow, config: RunConfig) -> tuple[bool, int]:
    return (row.num_devices == config.world_size, row.num_devices or 0)


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
    """Rank a row; None: it is of a run of another length, which the configuration does not name."""
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
