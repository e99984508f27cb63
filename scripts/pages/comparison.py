"""The tables of the page that compares the models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from image_classification.models import build
from image_classification.models.size import count_multiply_adds, count_parameters
from image_classification.reporting.published.load import load_runs, rows_of
from pages.published import Figures, named_runs, plain, precision_of, table


def _newest(model: str, platform: str, precisions: Sequence[str], figure: str) -> str:
    for run in named_runs(model):
        assert run.named is not None
        if run.named.platform == platform and run.named.precision in precisions:
            found = Figures(run).value(figure)
            if found and (figure != "top1" or run.recipe.epochs == 250):
                return found
    return ""


def side_by_side(models: Sequence[tuple[str, str]]) -> str:
    """Return size, accuracy after 250 epochs and training speed of the three models."""
    rows = []
    for model, page in models:
        reduction = "fixed16" if model.startswith("se-") else "paper"
        with torch.device("meta"):
            parameters = count_parameters(build(model, se_reduction=reduction))
        multiply_adds = count_multiply_adds(model, 224, se_reduction=reduction)
        cells = [f"[{model}]({page})", f"{parameters / 1e6:.1f}", f"{multiply_adds / 1e9:.2f}"]
        cells += [
            _newest(model, "DGX1V", ("AMP",), "top1"),
            _newest(model, "DGX1V", ("FP32",), "top1"),
        ]
        for platform, precisions in (
            ("DGX1V", ("AMP",)),
            ("DGX1V", ("FP32",)),
            ("DGX2V", ("AMP",)),
            ("DGXA100", ("AMP",)),
            ("DGXA100", ("TF32",)),
        ):
            cells.append(_newest(model, platform, precisions, "train_images_per_s"))
        rows.append(cells)
    heads = ["model", "parameters, M", "multiply-adds, G", "AMP top-1, %", "FP32 top-1, %"]
    heads += ["DGX-1 AMP", "DGX-1 FP32", "DGX-2 AMP", "DGX A100 AMP", "DGX A100 TF32"]
    return table(heads, rows)


def latency(models: Sequence[tuple[str, str]]) -> str:
    """Return inference speed and latency of the three models on one V100 and one T4."""
    rows = []
    for model, _ in models:
        for run in named_runs(model):
            of = {
                (row.figure, row.batch): row.value
                for row in rows_of(run)
                if row.elsewhere is None and row.batch
            }
            if not of:
                continue
            cells = [model, run.hardware.name or "", precision_of(run)]
            cells += [plain(of.get(("inference_images_per_s", b))) for b in (1, 8, 64, 128)]
            rows.append([*cells, plain(of.get(("latency_ms_p95", 1)))])
    heads = ["model", "machine", "precision", *(f"images/s, batch {b}" for b in (1, 8, 64, 128))]
    return table([*heads, "p95 of batch 1, ms"], rows)


def publications() -> str:
    """Return the number of runs and figures of each source, and of runs with a name here."""
    counts: dict[str, list[int]] = {}
    for run in load_runs():
        count = counts.setdefault(run.source.name, [0, 0, 0])
        count[0] += 1
        count[1] += len(rows_of(run))
        count[2] += run.named is not None
    ordered = sorted(counts.items(), key=lambda item: -item[1][0])
    rows = [[name, *(plain(number) for number in numbers)] for name, numbers in ordered]
    return table(["source", "runs", "figures", "with a name here"], rows)


def blocks(pages: Mapping[str, str]) -> dict[str, Callable[[], str]]:
    """Return ``{block: function that writes it}``. pages: file name -> model."""
    models = [(model, page) for page, model in pages.items()]
    return {
        "side-by-side": partial(side_by_side, models),
        "latency": partial(latency, models),
        "publications": publications,
    }
