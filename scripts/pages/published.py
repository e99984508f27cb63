"""The published runs that a page shows, and the Markdown of their figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from image_classification.reporting.published.load import (
    PublishedRow,
    PublishedRun,
    Source,
    load_runs,
    rows_of,
)

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
# Platforms without a publication, for which the pages have empty rows.
TODAYS_PLATFORMS = ("A100", "H100", "DGXH100", "H200", "DGXH200", "B200", "DGXB200")
# No PyTorch figure was published for Gaudi, so the tables show those of its vendor's page.
_GAUDI_SOURCE = "Habana developer site"


_NUMBER = re.compile(r"([\d.,]+( ± [\d.]+)?( \(\w+\))?)?")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with numbers to the right; without columns that have no content."""
    lines = [[cell or "" for cell in row] for row in rows]
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    numbers = [all(_NUMBER.fullmatch(line[i]) for line in lines) for i in kept]
    cells = [[heads[i] for i in kept], ["---:" if right else "---" for right in numbers]]
    cells += [[line[i] or "-" for i in kept] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def plain(value: float | None) -> str:
    """Return a figure as printed, with thousands separators; empty for None."""
    if value is None:
        return ""
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


class Sources:
    """Numbers of one page's sources, in order of first use."""

    def __init__(self) -> None:
        self.numbers: dict[Source, int] = {}

    def __call__(self, *sources: Source) -> str:
        """Return the sources' numbers in escaped brackets, so that Markdown makes no link."""
        found = [self.numbers.setdefault(source, len(self.numbers) + 1) for source in sources]
        return "".join(f"\\[{number}\\]" for number in dict.fromkeys(found))

    def listed(self) -> str:
        """Return the numbered list of all sources used so far."""
        return "\n".join(f"{number}. {source}" for source, number in self.numbers.items())


class Figures:
    """Figures of one published run by kind and number of devices, from its own document only."""

    def __init__(self, run: PublishedRun) -> None:
        self.run = run
        self.rows = {
            (row.figure, row.num_devices): row
            for row in rows_of(run)
            if row.elsewhere is None and row.batch is None and row.requests is None
        }

    def row(self, figure: str, devices: int | None = None) -> PublishedRow | None:
        """Return a figure for a number of devices; None is the number of the run itself."""
        return self.rows.get((figure, self.run.num_devices if devices is None else devices))

    def value(self, figure: str, devices: int | None = None) -> str:
        """Return the figure as text with its spread; empty if it was not published."""
        row = self.row(figure, devices)
        if row is None:
            return ""
        return plain(row.value) if row.spread is None else f"{row.value} ± {row.spread}"

    def printed_time(self) -> str:
        """Return the time to train as the source prints it."""
        row = self.row("time_to_train_min")
        return "" if row is None or row.printed is None else row.printed


def named_runs(model: str) -> list[PublishedRun]:
    """Return every published run that a configuration of this model reproduces."""
    return [run for run in load_runs() if run.named is not None and run.named.model == model]


def machine_order(run: PublishedRun) -> int:
    """Return the position of a run's machine in the tables; added machines come last."""
    name = run.hardware.name or ""
    return MACHINES.index(name) if name in MACHINES else len(MACHINES)


def release_of(source: Source, figure: str) -> str:
    """Return the release that a document's figures of a kind belong to.

    figure: ``accuracy`` or ``throughput``; some documents print those of two releases. Documents
    of the same release have the same text.
    """
    version = source.version or ""
    both = re.fullmatch("accuracy (?P<accuracy>.+), throughput (?P<throughput>.+)", version)
    if both:
        version = both[figure]
    if sdk := re.search(r"SDK V?(\d+\.\d+)", version):
        return f"IXUCA SDK {sdk[1]}"
    for text in (version, source.name):
        if container := re.search(r"(?:NGC |container |PyTorch |^)(\d\d\.\d\d)\b", text):
            return f"NGC {container[1]}"
    return version or "release not stated"


def tabled(model: str) -> list[PublishedRun]:
    """Return the runs of the result tables by machine, the newest publication first."""
    runs = [run for run in named_runs(model) if run.kind != "inference"]
    runs += [r for r in load_runs() if r.source.name == _GAUDI_SOURCE and r.model == model]
    return sorted((run for run in runs if Figures(run).rows), key=machine_order)


def precision_of(run: PublishedRun) -> str:
    """Return a run's precision by its name in this project."""
    if run.named is not None:
        return run.named.precision
    return "BF16" if "bf16" in (run.precision or "") else run.precision or ""


def is_full(run: PublishedRun) -> bool:
    """Return whether a run used full precision (FP32 or TF32)."""
    return precision_of(run) in FULL_PRECISION


def marked(run: PublishedRun, text: str) -> str:
    """Append the precision if it is not the one of the column (AMP or FP32)."""
    name = precision_of(run)
    return text if not text or name in ("AMP", "FP32") else f"{text} ({name})"
