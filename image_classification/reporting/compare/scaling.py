"""Ratios between groups of runs: speed-up over full precision, and weak scaling over devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from image_classification.core.units import number, percent
from image_classification.reporting.compare.combine import Group
from image_classification.reporting.compare.identity import Identity
from image_classification.reporting.published.load import THROUGHPUT_TOLERANCE, load_published
from image_classification.reporting.published.verdict import grade, newest
from image_classification.reporting.report import VerdictWord
from image_classification.reporting.table import Cell, Column, Table, columns, marked

SPEED = "train_images_per_s"

REDUCED = ("AMP", "BF16")
FULL = ("FP32", "TF32")

RATIO_TOLERANCE = math.sqrt(2) * THROUGHPUT_TOLERANCE
"""Allowed relative difference of a ratio of two speeds, each with its own tolerance."""


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

    def text(self, value: float | None) -> str:
        """Write a speed-up as a factor, a scaling efficiency in percent."""
        return percent(value) if self.kind == "scaling" else number(value)


def speedups(groups: Sequence[Group]) -> list[Ratio]:
    """Return the speed-ups of AMP and BF16 over FP32 and TF32, where both are given.

    Both groups have the same model, mode, platform, recipe and number of devices. Batches may
    differ, as they do in the published runs.
    """
    return [
        _speedup(slow, fast)
        for slow in groups
        for fast in groups
        if slow.identity.precision in FULL
        and fast.identity.precision in REDUCED
        and _all_but_precision(slow.identity) == _all_but_precision(fast.identity)
        and _has_speed(slow)
        and _has_speed(fast)
    ]


def scalings(groups: Sequence[Group]) -> list[Ratio]:
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
        found += [
            _scaling(base, other)
            for other in others
            if other.identity.num_devices > base.identity.num_devices
        ]
    return found


def _has_speed(group: Group) -> bool:
    return SPEED in group.figures and group.figures[SPEED].mean > 0


def _all_but_precision(names: Identity) -> tuple[object, ...]:
    return (names.model, names.mode, names.platform, names.recipe, names.num_devices)


def _speedup(slow: Group, fast: Group) -> Ratio:
    value = fast.figures[SPEED].mean / slow.figures[SPEED].mean
    count = fast.identity.num_devices
    # From the two published speeds: a printed speed-up may be over another precision than the
    # runs' own. Publications of both groups say nothing about one of them.
    fast_rates, slow_rates = _published_rates(fast, count), _published_rates(slow, count)
    shared = fast_rates.keys() & slow_rates.keys()
    published, source = _quotient(
        {key: rate for key, rate in fast_rates.items() if key not in shared},
        {key: rate for key, rate in slow_rates.items() if key not in shared},
    )
    obstacles = _obstacles(slow, fast, batches_may_differ=True)
    return _ratio("speedup", slow, fast, value, published, source, obstacles)


def _scaling(base: Group, other: Group) -> Ratio:
    few, many = base.identity.num_devices, other.identity.num_devices
    value = other.figures[SPEED].mean / (many / few * base.figures[SPEED].mean)
    many_rates = _published_rates(other, many)
    # Two speeds of one publication: those of two publications would compare two releases as well.
    few_rates = {
        key: rate for key, rate in _published_rates(other, few).items() if key in many_rates
    }
    if few_rates:
        many_rates = {key: rate for key, rate in many_rates.items() if key in few_rates}
    else:
        few_rates = _published_rates(base, few)
    published, source = _quotient(many_rates, few_rates, many / few)
    obstacles = _obstacles(base, other, batches_may_differ=False)
    return _ratio("scaling", base, other, value, published, source, obstacles)


def _ratio(
    kind: str,
    over: Group,
    of: Group,
    value: float,
    published: float | None,
    source: str | None,
    obstacles: list[str],
) -> Ratio:
    verdict: VerdictWord = "not-comparable"
    if obstacles:
        why = "; ".join(obstacles)
    elif published is None:
        why = "no published ratio of these runs"
    elif speed_obstacle := _speed_obstacle(over) or _speed_obstacle(of):
        why = speed_obstacle
    else:
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


def _published_rates(group: Group, num_devices: int) -> dict[str, float]:
    """Return published images/s on ``num_devices``, by the id of the published run."""
    ids = {entry.id for entry in group.published}
    return {
        row.id: row.value
        for row in load_published()
        if row.figure == SPEED and row.num_devices == num_devices and row.id in ids
    }


def _quotient(
    fast: dict[str, float], slow: dict[str, float], times: float = 1.0
) -> tuple[float | None, str | None]:
    """Divide the newest rates; return the ratio and the ids it is from."""
    if not fast or not slow:
        return None, None
    (fast_id, fast_rate), (slow_id, slow_rate) = next(iter(fast.items())), next(iter(slow.items()))
    source = fast_id if fast_id == slow_id else f"{fast_id}, {slow_id}"
    return fast_rate / (times * slow_rate), source


def ratio_table(ratios: Sequence[Ratio], *, with_reasons: bool = False) -> Table:
    """Return measured and published ratios with their verdicts, and the reasons if asked for."""
    heads = [
        Column("of"),
        *columns("measured", "published", numbers=range(2)),
        Column("verdict", wrap=False),
    ]
    rows: list[Sequence[Cell | str]] = [
        (
            ratio.label,
            ratio.text(ratio.value),
            ratio.text(ratio.published),
            marked(ratio.verdict),
            *([ratio.why] if with_reasons else []),
        )
        for ratio in ratios
    ]
    return Table([*heads, Column("why", css="why")] if with_reasons else heads, rows)
