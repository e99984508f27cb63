"""``combined.html``: one file that needs nothing else, neither scripts nor a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from string import Template

from image_classification.core.units import number
from image_classification.reporting.compare.combine import Group
from image_classification.reporting.compare.combine_text import (
    FIGURE_HEADS,
    INFERENCE_HEADS,
    Combined,
    figure_rows,
    inference_rows,
    published_label,
    published_text,
    published_with_spread,
    ratio_label,
    ratio_text,
    seeds_text,
    title_of,
)
from image_classification.reporting.compare.identity import device_names
from image_classification.reporting.compare.regression import environment_of, short_commit
from image_classification.reporting.compare.scaling import Ratio
from image_classification.reporting.compare.vendor_table import COLUMNS, vendor_row


def combined_page(combined: Combined) -> str:
    """Return the page: the vendor table, every group, then speed-ups and scaling."""
    body = [
        "<h1>Combined runs</h1>",
        "<h2>Vendor table</h2>",
        _table(
            ("run", *COLUMNS),
            (
                (group.identity.text, *vendor_row(group, combined.scalings).values())
                for group in combined.groups
            ),
        ),
    ]
    for group in combined.groups:
        body += _group(group)
    body += _ratios("Speed-up over full precision", combined.speedups)
    body += _ratios("Weak scaling", combined.scalings)
    template = resources.files(__package__).joinpath("combined.html").read_text(encoding="utf-8")
    title = "; ".join(dict.fromkeys(group.identity.text for group in combined.groups))
    return Template(template).substitute(title=escape(title), body="\n".join(body))


def _group(group: Group) -> Iterator[str]:
    yield f"<h2>{escape(title_of(group))}</h2>"
    yield f"<p>{escape(device_names(group.first))}; {escape(seeds_text(group))}</p>"
    for warning in group.warnings:
        yield f'<p class="warning">{escape(warning)}</p>'
    if group.published:
        yield _table(
            ("figure", "published", "measured", "ratio", "verdict", "why"),
            (
                (
                    f"{published_label(entry.figure)} ({entry.id})",
                    published_with_spread(entry),
                    published_text(entry, entry.measured),
                    number(entry.ratio, 3),
                    entry.verdict,
                    entry.why,
                )
                for entry in group.published
            ),
            numbers=(1, 2, 3),
        )
    else:
        yield "<p>No published figure belongs to these runs.</p>"
    rows, served = figure_rows(group), inference_rows(group)
    if rows:
        yield _table(FIGURE_HEADS, rows, numbers=range(2, len(FIGURE_HEADS)))
    if served:
        yield "<p>Inference, means; latency in ms</p>"
        yield _table(INFERENCE_HEADS, served, numbers=range(len(INFERENCE_HEADS)))
    environments = [environment_of(run) for run in group.runs]
    kinds = ("container", "driver", "cuda", "torch", "dali")
    yield _table(
        ("run", "seed", "ended (UTC)", "top-1", "images/s", *kinds, "git"),
        (
            (
                run.label,
                str(run.seed),
                run.time_text,
                number(run.figures.get("top1")),
                number(run.figures.get("train_images_per_s"), 1),
                *(environment[kind] for kind in kinds),
                short_commit(environment["git_commit"]),
            )
            for run, environment in zip(group.runs, environments, strict=True)
        ),
        numbers=(1, 3, 4),
    )


def _ratios(title: str, ratios: Sequence[Ratio]) -> Iterator[str]:
    if not ratios:
        return
    yield f"<h2>{escape(title)}</h2>"
    yield _table(
        ("of", "measured", "published", "verdict", "why"),
        (
            (
                ratio_label(ratio),
                ratio_text(ratio, ratio.value),
                ratio_text(ratio, ratio.published),
                ratio.verdict,
                ratio.why,
            )
            for ratio in ratios
        ),
        numbers=(1, 2),
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Build a table of plain text. numbers: the columns that are set flush right."""
    kinds = [' class="num"' if at in numbers else "" for at in range(len(heads))]

    def row(cells: Sequence[str], tag: str) -> str:
        inner = "".join(
            f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )
        return f"<tr>{inner}</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    head = row(heads, "th").replace("<th", '<th scope="col"')
    return f'<div class="scroll"><table><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>'
