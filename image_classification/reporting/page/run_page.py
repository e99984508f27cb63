"""``report.html``: one file that needs nothing else, neither scripts nor a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from image_classification.core.files import write_atomically
from image_classification.core.units import (
    number,
    percent,
    rate,
    size,
)
from image_classification.reporting.console.results import result_rows
from image_classification.reporting.figures import LATENCY_NAMES, label_of, value_text
from image_classification.reporting.pictures.draw import Gallery, gallery_html
from image_classification.reporting.published.verdict import newest
from image_classification.reporting.report import (
    InferenceResults,
    PublishedComparison,
    RunReport,
    Telemetry,
    to_json,
)

PAGE_NAME = "report.html"
PICTURES_PAGE_NAME = "pictures.html"


def write_page(
    report: RunReport,
    folder: Path,
    *,
    gallery: Gallery | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write ``report.html`` into the run's folder.

    gallery: the run's pictures, as `pictures.draw.draw_run` returns them. provenance: where each
    ``section.key`` came from.

    Raises:
        WorkspaceError: the page cannot be written.
    """
    path = folder / PAGE_NAME
    write_atomically(path, render(report, gallery, provenance=provenance))
    return path


def render(
    report: RunReport,
    gallery: Gallery | None = None,
    *,
    provenance: Mapping[str, str] | None = None,
) -> str:
    """Return the page, which needs no other file."""
    names = asdict(report.name)
    body = [
        f"<h1>{escape(names['model'])} on {escape(names['platform'])}</h1>",
        _names(names),
        _ending(report),
        _published(report.published),
        "<h2>Results</h2>",
        _pairs(result_rows(report)),
        _inference(report.results.inference),
        _telemetry(report.telemetry),
        _pictures(gallery),
        "<h2>Environment</h2>",
        _pairs((key, _plain(value)) for key, value in to_json(report.environment).items()),
        "<h2>Configuration</h2>",
        *(_section(name, values, provenance) for name, values in report.config.items()),
    ]
    title = " ".join(names[key] for key in ("model", "precision", "platform", "mode"))
    return _page(title, body)


def write_pictures_page(gallery: Gallery, folder: Path, title: str) -> Path:
    """Write ``pictures.html``, the pictures alone; raises WorkspaceError as `write_page`."""
    path = folder / PICTURES_PAGE_NAME
    write_atomically(path, _page(title, [f"<h1>{escape(title)}</h1>", gallery_html(gallery)]))
    return path


def _page(title: str, body: Iterable[str]) -> str:
    template = resources.files(__package__).joinpath("run.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(title), body="\n".join(filter(None, body)))


def _names(names: Mapping[str, str]) -> str:
    shown = (
        f'<span class="name">{escape(key)} <b>{escape(value)}</b></span>'
        for key, value in names.items()
        if value
    )
    return f'<p class="names">{"".join(shown)}</p>'


def _ending(report: RunReport) -> str:
    if report.exit.code == 0:
        return ""
    return (
        f'<p class="failed">This run ended early: <b>{escape(str(report.exit.status))}</b>. '
        f"{escape(str(report.exit.message))}</p>"
    )


def _published(published: Sequence[PublishedComparison]) -> str:
    if not published:
        return '<p class="none">No published figure belongs to this configuration.</p>'
    first = newest(published)
    rest = [entry for entry in published if entry not in first]
    text = "<h2>Against the published figures</h2>" + _verdicts(first)
    if rest:
        summary = f"Other publications of the same figures ({len(rest)})"
        text += f"<details><summary>{summary}</summary>{_verdicts(rest)}</details>"
    return text


def _verdicts(entries: Sequence[PublishedComparison]) -> str:
    rows = [
        [
            f"<span>{escape(label_of(entry.figure))}<br>"
            f'<span class="id">{escape(entry.id)}</span></span>',
            escape(value_text(entry.figure, entry.published)),
            escape(value_text(entry.figure, entry.measured)),
            escape(number(entry.ratio, 3)),
            f'<span class="verdict {escape(entry.verdict)}">{escape(entry.verdict)}</span>',
            f"<span>{escape(entry.why)}</span>",
        ]
        for entry in entries
    ]
    heads = ("figure", "published", "measured", "ratio", "verdict", "why")
    classes = ("figure", "num", "num", "num", "", "why")
    return _table(heads, rows, classes, stacked=True)


def _inference(rows: Sequence[InferenceResults] | None) -> str:
    if not rows:
        return ""
    cells = [
        [
            escape(str(row.batch)),
            escape(rate(row.images_per_s)),
            *(escape(number(getattr(row.latency_ms, name))) for name in LATENCY_NAMES),
        ]
        for row in rows
    ]
    heads = ("batch", "images/s", *(f"{name}, ms" for name in LATENCY_NAMES))
    return "<h2>Inference</h2>" + _table(heads, cells, ("num",) * len(heads))


def _telemetry(telemetry: Telemetry) -> str:
    devices = telemetry.devices
    if not devices:
        return ""
    found = [c for c in _TELEMETRY_COLUMNS if any(getattr(d, c[1]) is not None for d in devices)]
    missing = [column[0] for column in _TELEMETRY_COLUMNS if column not in found]
    heads = ("device", *(head for head, _, _ in found))
    cells = [
        [
            escape(str(device.name)),
            *(escape(_measured(getattr(device, key), show)) for _, key, show in found),
        ]
        for device in devices
    ]
    totals = [
        ("energy", _measured(telemetry.energy_j, _kilojoules)),
        ("images per joule", _measured(telemetry.images_per_joule, lambda v: number(v, 3))),
        ("source", _plain(telemetry.source)),
    ]
    if missing:
        totals.insert(-1, ("not measured", ", ".join(missing)))
    classes = ("", *("num",) * len(found))
    return "<h2>Telemetry</h2>" + _table(heads, cells, classes) + _pairs(totals)


def _measured(value: Any, show: Callable[[Any], str]) -> str:
    return "not measured" if value is None else show(value)


def _kilojoules(joules: float) -> str:
    return f"{number(joules / 1000, 2)} kJ"


def _reasons(shares: Mapping[str, float]) -> str:
    held = (f"{name.replace('_', ' ')} {percent(share, 0)}" for name, share in shares.items())
    return ", ".join(held) or "no"


_TELEMETRY_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("mean power", "power_w_mean", lambda value: f"{number(value, 1)} W"),
    ("highest power", "power_w_max", lambda value: f"{number(value, 1)} W"),
    ("energy", "energy_j", _kilojoules),
    ("peak memory", "memory_peak_bytes", size),
    ("mean utilisation", "utilization_mean", percent),
    ("highest temperature", "temperature_c_max", lambda value: f"{number(value, 0)} °C"),
    ("mean clock", "clock_mhz_mean", lambda value: f"{number(value, 0)} MHz"),
    ("clock held back, share of time", "throttle_reasons", _reasons),
)


def _pictures(gallery: Gallery | None) -> str:
    if gallery is None:
        return ""
    shown = gallery_html(gallery)
    return f"<h2>Pictures</h2>\n{shown}" if shown else ""


def _section(name: str, values: Mapping[str, Any], provenance: Mapping[str, str] | None) -> str:
    heads: tuple[str, ...] = ("key", "value")
    rows = [[f"<code>{escape(key)}</code>", escape(_plain(value))] for key, value in values.items()]
    if provenance is not None:
        heads = (*heads, "where from")
        for row, key in zip(rows, values, strict=True):
            row.append(f'<span class="soft">{escape(provenance.get(f"{name}.{key}", "-"))}</span>')
    return f"<details><summary>{escape(name)}</summary>{_table(heads, rows)}</details>"


def _table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    classes: Sequence[str] = (),
    *,
    stacked: bool = False,
) -> str:
    """Build a table; cells are HTML already, heads are text.

    stacked: on a narrow screen the cells of a row stand below one another.
    """
    kinds = [f' class="{kind}"' if kind else "" for kind in classes] or [""] * len(heads)
    head = "".join(
        f'<th scope="col"{kind}>{escape(text)}</th>'
        for kind, text in zip(kinds, heads, strict=True)
    )
    cells = [
        f'<td{kind} data-head="{escape(text)}">' if stacked else f"<td{kind}>"
        for kind, text in zip(kinds, heads, strict=True)
    ]
    body = "\n".join(
        "<tr>"
        + "".join(f"{opening}{cell}</td>" for opening, cell in zip(cells, row, strict=True))
        + "</tr>"
        for row in rows
    )
    table = '<table class="stacked">' if stacked else "<table>"
    # Focusable, so that what is wider than the screen can be scrolled with the keyboard.
    return (
        f'<div class="scroll" tabindex="0">{table}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>'
        for key, value in pairs
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _plain(value: Any) -> str:
    """A value as a person writes it; a dash for null."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(
            _plain(item) if key == "name" else f"{key} {_plain(item)}"
            for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        # Eight equal GPUs are one line, not eight.
        counts = Counter(_plain(item) for item in value)
        return ", ".join(f"{n} x {item}" if n > 1 else item for item, n in counts.items()) or "none"
    return str(value)
