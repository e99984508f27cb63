"""Which published runs a page shows, and their figures as text."""

from __future__ import annotations

from image_classification.reporting.published.load import (
    PublishedRow,
    PublishedRun,
    load_runs,
    rows_of,
)
from pages.markdown import plain

FULL_PRECISION = ("FP32", "TF32")
MACHINES = (
    "DGX-1 V100 16GB",
    "DGX-1 V100 32GB",
    "DGX-2 V100 32GB",
    "DGX A100 80GB",
    "DGX A100 40GB",
    "T4",
    "Iluvatar BI-V100",
    "Habana Gaudi",
)
# No PyTorch figure was published for Gaudi, so its own page's stand in the tables.
_GAUDI_SOURCE = "Habana developer site"
_LATENCIES = (("mean", "mean"), ("p50", "median"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99"))


class Figures:
    """The figures of one run, by kind and number of devices; only its own document's."""

    def __init__(self, run: PublishedRun) -> None:
        self.run = run
        self.rows = {
            (row.figure, row.num_devices): row
            for row in rows_of(run)
            if row.elsewhere is None and row.batch is None and row.requests is None
        }

    def row(self, figure: str, devices: int | None = None) -> PublishedRow | None:
        """Return a figure of the run's own number of devices, or another's."""
        return self.rows.get((figure, self.run.num_devices if devices is None else devices))

    def value(self, figure: str, devices: int | None = None) -> str:
        """Return it as text, with its spread."""
        row = self.row(figure, devices)
        if row is None:
            return ""
        return plain(row.value) if row.spread is None else f"{row.value} ± {row.spread}"

    def printed_time(self) -> str:
        """Return the time to train in the source's words."""
        row = self.row("time_to_train_min")
        return "" if row is None or row.printed is None else row.printed


def named_runs(model: str) -> list[PublishedRun]:
    """Every publication that a configuration of this model reproduces."""
    return [run for run in load_runs() if run.named is not None and run.named.model == model]


def machine_order(run: PublishedRun) -> int:
    """Where a run's machine stands in the tables."""
    return MACHINES.index(run.hardware.name or "")


def tabled(model: str) -> list[PublishedRun]:
    """Every run of the result tables, by machine; within one the newest publication first."""
    runs = [run for run in named_runs(model) if run.kind != "inference"]
    runs += [r for r in load_runs() if r.source.name == _GAUDI_SOURCE and r.model == model]
    runs = [run for run in runs if Figures(run).rows]
    return sorted((run for run in runs if run.hardware.name in MACHINES), key=machine_order)


def precision_of(run: PublishedRun) -> str:
    """Return a run's precision in this project's words."""
    if run.named is not None:
        return run.named.precision
    return "BF16" if "bf16" in (run.precision or "") else run.precision or ""


def is_full(run: PublishedRun) -> bool:
    """Tell full from mixed precision."""
    return precision_of(run) in FULL_PRECISION


def marked(run: PublishedRun, text: str) -> str:
    """Name a precision that is not the column's own."""
    name = precision_of(run)
    return text if not text or name in ("AMP", "FP32") else f"{text} ({name})"
