"""``report combine``: groups of runs, the ratios between them, and the vendor table.

The vendor table has the columns in which vendors of accelerators publish their results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.text import Text

from image_classification.core.units import duration, number, percent, rate
from image_classification.reporting.compare.groups import Group, figure_table, inference_table
from image_classification.reporting.compare.identity import Identity, run_json
from image_classification.reporting.figures import (
    figure_of,
    label_of,
    plain_spread,
    split_batch,
    value_text,
)
from image_classification.reporting.published.load import THROUGHPUT_TOLERANCE, load_published
from image_classification.reporting.published.verdict import grade, newest, published_table
from image_classification.reporting.report import VerdictWord
from image_classification.reporting.table import (
    Cell,
    Column,
    Table,
    columns,
    marked,
    pairs,
    print_table,
)

SPEED = "train_images_per_s"
FULL_PRECISION = ("FP32", "TF32")
REDUCED_PRECISION = ("AMP", "BF16")
RATIO_TOLERANCE = math.sqrt(2) * THROUGHPUT_TOLERANCE
"""Allowed relative difference of a ratio of two speeds, each with its own tolerance."""

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Ratio:
    """A ratio of two groups' training speeds, and the published one.

    kind: ``speedup`` or ``scaling``. value: None if the two cannot be compared; ``why`` says what
    differs. published_from: the publications that the published ratio is calculated from.
    """

    kind: str
    over: Identity
    of: Identity
    value: float | None
    published: float | None
    published_from: str | None
    verdict: str
    why: str

    @property
    def label(self) -> str:
        """The two groups in words: ``resnet50 DGX1V, 8 devices, AMP over FP32``."""
        of, over = self.of, self.over
        if self.kind == "speedup":
            return (
                f"{of.model} {of.platform}, {of.devices_text}, {of.precision} over {over.precision}"
            )
        return f"{of.model} {of.precision} {of.platform}, {over.num_devices} -> {of.num_devices}"


@dataclass(frozen=True)
class Combined:
    """Groups of runs, and the ratios between them."""

    groups: Sequence[Group]
    speedups: Sequence[Ratio]
    scalings: Sequence[Ratio]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Combined:
        """Calculate the ratios between ``groups``."""
        return cls(groups, _speedups(groups), _scalings(groups))


def _speedups(groups: Sequence[Group]) -> list[Ratio]:
    """Return the speed-ups of AMP and BF16 over FP32 and TF32, where both are given.

    Both groups have the same model, mode, platform, recipe and number of devices. Batches may
    differ, as they do in the published runs.
    """
    found = []
    for slow in groups:
        for fast in groups:
            if (
                slow.identity.precision in FULL_PRECISION
                and fast.identity.precision in REDUCED_PRECISION
                and replace(slow.identity, precision="") == replace(fast.identity, precision="")
                and _has_speed(slow)
                and _has_speed(fast)
            ):
                # From the two published speeds: a printed speed-up may be over another precision
                # than the runs' own. Publications of both groups say nothing about one of them.
                count = fast.identity.num_devices
                fast_rates, slow_rates = (_published_rates(each, count) for each in (fast, slow))
                shared = fast_rates.keys() & slow_rates.keys()
                for rates in (fast_rates, slow_rates):
                    for key in shared:
                        del rates[key]
                found.append(_ratio("speedup", slow, fast, slow_rates, fast_rates))
    return found


def _scalings(groups: Sequence[Group]) -> list[Ratio]:
    """Return weak scaling: images/s of n devices divided by n/n0 times those of the fewest, n0.

    Both groups have the same model, mode, precision, recipe and kind of device; their platforms
    may be different sizes of one machine.
    """
    families: dict[tuple[str, ...], list[Group]] = {}
    for group in filter(_has_speed, groups):
        names = group.identity
        key = (names.model, names.precision, names.mode, names.recipe, group.device_names)
        families.setdefault(key, []).append(group)
    found = []
    for family in families.values():
        base, *others = sorted(family, key=lambda group: group.identity.num_devices)
        few = base.identity.num_devices
        for other in others:
            many = other.identity.num_devices
            if many == few:
                continue
            # Two speeds of one publication where there are any: those of two publications would
            # compare two releases as well.
            base_rates, rates = _published_rates(other, few), _published_rates(other, many)
            shared = [key for key in base_rates if key in rates]
            if shared:
                base_rates = {key: base_rates[key] for key in shared}
                rates = {key: rates[key] for key in rates if key in base_rates}
            else:
                base_rates = _published_rates(base, few)
            found.append(_ratio("scaling", base, other, base_rates, rates))
    return found


def _has_speed(group: Group) -> bool:
    return (group.mean(SPEED) or 0) > 0


def _published_rates(group: Group, num_devices: int) -> dict[str, float]:
    """Return published images/s on ``num_devices``, by the id of the published run."""
    ids = {entry.id for entry in group.published}
    return {
        row.id: row.value
        for row in load_published()
        if row.figure == SPEED and row.num_devices == num_devices and row.id in ids
    }


def _ratio(
    kind: str,
    over: Group,
    of: Group,
    over_rates: Mapping[str, float],
    of_rates: Mapping[str, float],
) -> Ratio:
    """Compare the ratio of two speeds per device with that of the newest published rates."""
    times = of.identity.num_devices / over.identity.num_devices
    value = of.figures[SPEED].mean / (times * over.figures[SPEED].mean)
    published, source = None, None
    if of_rates and over_rates:
        of_id, over_id = next(iter(of_rates)), next(iter(over_rates))
        published = of_rates[of_id] / (times * over_rates[over_id])
        source = of_id if of_id == over_id else f"{of_id}, {over_id}"
    verdict: VerdictWord = "not-comparable"
    obstacles = _obstacles(over, of, batches_may_differ=kind == "speedup")
    if obstacles:
        why = "; ".join(obstacles)
    elif published is None:
        why = "no published ratio of these runs"
    else:
        why = _speed_obstacle(over) or _speed_obstacle(of)
        if not why:
            change = value / published - 1
            verdict = grade(change, RATIO_TOLERANCE)
            why = f"{100 * change:+.1f} %, tolerance {100 * RATIO_TOLERANCE:.0f} %"
    shown = None if obstacles else value
    return Ratio(kind, over.identity, of.identity, shown, published, source, verdict, why)


def _obstacles(one: Group, other: Group, *, batches_may_differ: bool) -> list[str]:
    """Return why the speeds of two groups have no meaningful ratio."""
    obstacles = []
    if one.device_names != other.device_names:
        obstacles.append(f"ran on {one.device_names} and on {other.device_names}")
    configs = [group.report.config for group in (one, other)]
    batches = [config["batch"]["per_device"] for config in configs]
    if not batches_may_differ and batches[0] != batches[1]:
        obstacles.append(f"{batches[0]} and {batches[1]} images per device: not weak scaling")
    for key in ("backend", "image_size"):
        values = [config["data"].get(key) for config in configs]
        if values[0] != values[1]:
            obstacles.append(f"data.{key} {values[0]} and {values[1]}")
    return obstacles


def _speed_obstacle(group: Group) -> str:
    """Return why the group's speed cannot be compared with a published one; '' if it can."""
    for entry in newest(group.published):
        if entry.figure == SPEED:
            return "" if entry.comparable else entry.why
    return f"no published speed of {group.identity.text}"


def ratio_table(ratios: Sequence[Ratio], *, with_reasons: bool = False) -> Table:
    """Return measured and published ratios with their verdicts, and the reasons if asked for.

    A speed-up is written as a factor, a scaling efficiency in percent.
    """
    heads = [*columns("of", "measured", "published", numbers=(1, 2)), Column("verdict", wrap=False)]
    rows: list[list[Cell | str]] = []
    for ratio in ratios:
        text = percent if ratio.kind == "scaling" else number
        values = (text(ratio.value), text(ratio.published))
        rows.append([ratio.label, *values, marked(ratio.verdict)])
    if with_reasons:
        heads.append(Column("why", css="why"))
        for row, ratio in zip(rows, ratios, strict=True):
            row.append(ratio.why)
    return Table(heads, rows)


def vendor_row(group: Group, scalings: Sequence[Ratio]) -> dict[str, str]:
    """Return the text of every column of the vendor table; ``not measured`` if unknown."""
    batch = group.report.config["batch"]["per_device"]
    devices = group.report.devices_text
    row = {
        "convergence criterion": _criterion(group),
        "configuration": f"{devices}, batch {batch} per device, {group.identity.precision}",
        "performance": _performance(group),
        "accuracy": _accuracy(group),
        "power": _per_device(group, "power_w_per_device"),
        "scalability": _scalability(group, scalings),
        "memory": _per_device(group, "memory_g_per_device"),
        "stability": _stability(group),
    }
    return {column: text or NOT_MEASURED for column, text in row.items()}


def vendor_table(combined: Combined) -> Table:
    """Return one row per group."""
    rows = [
        {"run": group.identity.text, **vendor_row(group, combined.scalings)}
        for group in combined.groups
    ]
    return Table(columns(*rows[0]), [tuple(row.values()) for row in rows])


def _criterion(group: Group) -> str:
    wanted = group.report.results.target.stop_at_top1
    if wanted is None:
        if group.identity.mode != "convergence":
            return f"none ({group.identity.mode})"
        return f"none, trained for {_epochs(group)} epochs" if _epochs(group) else "none"
    text = f"top-1 {number(wanted)} %"
    epoch, time_s = group.mean("target_epoch"), group.mean("target_time_s")
    if epoch is None:
        return f"{text}: not reached"
    runs = sum("target_epoch" in run.figures for run in group.runs)
    share = "" if runs == len(group.runs) else f" in {runs} of {len(group.runs)} runs"
    after = "" if time_s is None else f", {duration(time_s)}"
    return f"{text}: reached{share} after epoch {epoch:.4g}{after}"


def _epochs(group: Group) -> str:
    """Return the number of epochs trained, and of the schedule where the runs ended before it."""
    trained = [run.report.results.train.epochs for run in group.runs]
    planned = group.report.config.get("schedule", {}).get("epochs")
    known = sorted({epochs for epochs in trained if epochs is not None})
    if not known:
        return ""
    text = " to ".join(f"{epochs:.4g}" for epochs in (known[0], known[-1])[: len(known)])
    return text if planned is None or known == [planned] else f"{text} of {planned}"


def _performance(group: Group) -> str:
    """Return the speed of training, or of inference at its best batch size, or of loading."""
    if SPEED in group.figures:
        return f"{rate(group.mean(SPEED))} images/s, training"
    inference = [key for key in group.figures if key.startswith("inference_images_per_s")]
    if inference:
        best = max(inference, key=lambda key: group.figures[key].mean)
        speed = rate(group.mean(best))
        return f"{speed} images/s, inference, batch {split_batch(best)[1]}"
    loading = group.mean("data_images_per_s")
    return "" if loading is None else f"{rate(loading)} images/s, loading"


def _accuracy(group: Group) -> str:
    parts = []
    for key in ("top1", "top5", "top1_ema"):
        if figure := group.figures.get(key):
            text = f"{label_of(key)} {value_text(key, figure.mean)}"
            if figure.std is not None:
                text += f" ± {plain_spread(key, figure.std)} (n = {figure.n})"
            parts.append(text)
    return ", ".join(parts)


def _per_device(group: Group, key: str) -> str:
    mean = group.mean(key)
    return "" if mean is None else f"{value_text(key, mean)} x {group.identity.num_devices}"


def _scalability(group: Group, scalings: Sequence[Ratio]) -> str:
    for ratio in scalings:
        if ratio.of == group.identity and ratio.value is not None:
            few, many = ratio.over.num_devices, ratio.of.num_devices
            return f"efficiency {percent(ratio.value)} from {few} to {many} devices"
    return ""


def _stability(group: Group) -> str:
    parts = []
    steps = [group.mean(f"step_time_ms_{name}") for name in ("p50", "p95", "p99")]
    if None not in steps:
        parts.append(f"step p50 / p95 / p99 {' / '.join(number(step, 1) for step in steps)} ms")
    train = group.figures.get(SPEED)
    if train is not None and train.std is not None and train.mean > 0:
        parts.append(f"speed ± {100 * train.std / train.mean:.1f} % over {train.n} runs")
    return ", ".join(parts)


def combined_json(combined: Combined) -> dict[str, Any]:
    """Return the content of ``combined.json``; docs/reports.md describes its keys."""
    return {
        "schema_version": 1,
        "groups": [
            {
                "name": asdict(group.report.name),
                "num_devices": group.identity.num_devices,
                "devices": group.device_names,
                "runs": [{**run_json(run), "figures": dict(run.figures)} for run in group.runs],
                "figures": {
                    key: {"unit": figure_of(key).unit, **asdict(spread)}
                    for key, spread in group.figures.items()
                },
                "published": [asdict(entry) for entry in group.published],
                "vendor": vendor_row(group, combined.scalings),
                "warnings": list(group.warnings),
            }
            for group in combined.groups
        ],
        "speedups": [asdict(ratio) for ratio in combined.speedups],
        "scalings": [asdict(ratio) for ratio in combined.scalings],
    }


def print_combined(console: Console, combined: Combined, *, vendor: bool) -> None:
    """Print every group's figures and verdicts, then the ratios. vendor: the vendor table too."""
    for group in combined.groups:
        _print_group(console, group)
        if vendor:
            row = vendor_row(group, combined.scalings)
            print_table(console, pairs(row.items(), "\nVendor table"))
        console.print()
    for title, ratios in (("Speed-up", combined.speedups), ("Weak scaling", combined.scalings)):
        if ratios:
            print_table(console, replace(ratio_table(ratios), title=title))
            for ratio in ratios:
                console.print(Text.assemble((f"{ratio.label}: ", "dim"), ratio.why))
            console.print()


def _print_group(console: Console, group: Group) -> None:
    figures, inference = figure_table(group), inference_table(group)
    if figures.rows:
        print_table(console, replace(figures, title=group.title, notes=[group.note]))
    else:
        console.print(Text.assemble((group.title, "bold"), f"\n{group.note}"))
    if inference.rows:
        print_table(console, replace(inference, title="\nInference, means; latency in ms"))
    if group.published:
        first = newest(group.published)
        console.print()
        print_table(console, published_table(first))
        for entry in first:
            label = f"{entry.id}, {label_of(entry.figure)}: "
            console.print(Text.assemble((label, "dim"), entry.why))
    for warning in group.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))
