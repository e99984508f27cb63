"""``combined.html``: the page of ``report combine``."""

from __future__ import annotations

from typing import Any

from image_classification.core.units import number
from image_classification.reporting.compare.combine import Group, figure_table, inference_table
from image_classification.reporting.compare.combined import Combined
from image_classification.reporting.compare.identity import environment_of, short_commit
from image_classification.reporting.compare.scaling import ratio_table
from image_classification.reporting.compare.vendor_table import vendor_table
from image_classification.reporting.page.template import render
from image_classification.reporting.published.verdict import published_table
from image_classification.reporting.table import Table, columns

_VERSIONS = ("container", "driver", "cuda", "torch", "dali")


def combined_page(combined: Combined) -> str:
    """Return the page: the vendor table, every group, then speed-ups and scaling."""
    return render(
        "combined",
        title="; ".join(dict.fromkeys(group.identity.text for group in combined.groups)),
        wide=True,
        vendor=vendor_table(combined.groups, combined.scalings),
        groups=[(group, _tables(group)) for group in combined.groups],
        ratios=[
            ("Speed-up over full precision", ratio_table(combined.speedups, with_reasons=True)),
            ("Weak scaling", ratio_table(combined.scalings, with_reasons=True)),
        ],
    )


def _tables(group: Group) -> dict[str, Any]:
    return {
        "published": published_table(group.published, with_reasons=True),
        "figures": figure_table(group),
        "inference": inference_table(group),
        "runs": _run_table(group),
    }


def _run_table(group: Group) -> Table:
    heads = ("run", "seed", "ended (UTC)", "top-1", "images/s", *_VERSIONS, "git")
    rows = []
    for run in group.runs:
        environment = environment_of(run)
        rows.append(
            (
                run.label,
                str(run.seed),
                run.time_text,
                number(run.figures.get("top1")),
                number(run.figures.get("train_images_per_s"), 1),
                *(environment[key] for key in _VERSIONS),
                short_commit(environment["git_commit"]),
            )
        )
    return Table(columns(*heads, numbers=(1, 3, 4)), rows)
