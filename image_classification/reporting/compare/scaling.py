"""What several groups of runs say together: speed-up over full precision, scaling over devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from image_classification.reporting.compare.combine import Group
from image_classification.reporting.compare.identity import Identity, device_names
from image_classification.reporting.published.load import THROUGHPUT_TOLERANCE, load_published
from image_classification.reporting.published.verdict import grade
from image_classification.reporting.report import VerdictWord

SPEED = "train_images_per_s"

REDUCED = ("AMP", "BF16")
FULL = ("FP32", "TF32")

RATIO_TOLERANCE = math.sqrt(2) * THROUGHPUT_TOLERANCE
"""Allowed relative difference of a ratio of two speeds, each with its own tolerance."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of two groups' training speeds, and the published one.

    value: None where the two cannot be compared; ``why`` says what differs. ideal: the value
    without losses, for scaling. published_from: what the published value is worked out from.
    verdict: as for single figures.
    """

    kind: str
    over: Identity
    of: Identity
    value: float | None
    published: float | None
    published_from: str | None
    verdict: str
    why: str


def speedups(groups: Sequence[Group]) -> list[Ratio]:
    """Return the speed-up of AMP and BF16 over FP32 and TF32 wherever both were given.

    Both have the same model, mode, platform, recipe and number of devices. Batches may differ, as
    they do in the published runs.
    """
    return [
        _speedup(slow, fast)
        for slow in groups
        for fast in groups
        if slow.identity.precision in FULL
        and fast.identity.precision in REDUCED
        and _rest(slow.identity) == _rest(fast.identity)
        and _has_speed(slow)
        and _has_speed(fast)
    ]


def scalings(groups: Sequence[Group]) -> list[Ratio]:
    """Return weak scaling: images/s of N devices over N/n0 times those of the fewest, n0.

    Both have the same model, mode, precision, recipe and kind of device; platforms may be sizes of
    one machine.
    """
    families: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        names = group.identity
        if _has_speed(group):
            devices = device_names(group.first)
            key = (names.model, names.precision, names.mode, names.recipe, devices)
            families.setdefault(key, []).append(group)
    found = []
    for family in families.values():
        ordered = sorted(family, key=lambda group: group.identity.num_devices)
        base = ordered[0]
        found += [
            _scaling(base, other)
            for other in ordered[1:]
            if other.identity.num_devices > base.identity.num_devices
        ]
    return found


def _has_speed(group: Group) -> bool:
    return SPEED in group.figures and group.figures[SPEED].mean > 0


def _rest(names: Identity) -> tuple[object, ...]:
    return (names.model, names.mode, names.platform, names.recipe, names.num_devices)


def _speedup(slow: Group, fast: Group) -> Ratio:
    obstacles = _obstacles(slow, fast, batches_may_differ=True)
    value = fast.figures[SPEED].mean / slow.figures[SPEED].mean
    count = fast.identity.num_devices
    # From the two speeds: a printed speed-up may be over another precision than these runs'.
    above, below = _rates(fast, count), _rates(slow, count)
    shared = above.keys() & below.keys()
    published, source = _quotient(
        {key: rate for key, rate in above.items() if key not in shared},
        {key: rate for key, rate in below.items() if key not in shared},
    )
    return _ratio("speedup", slow, fast, value, published, source, obstacles)


def _scaling(base: Group, other: Group) -> Ratio:
    obstacles = _obstacles(base, other, batches_may_differ=False)
    times = other.identity.num_devices / base.identity.num_devices
    value = other.figures[SPEED].mean / (times * base.figures[SPEED].mean)
    published, source = _published_scaling(base, other)
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
    barred = _barred(over) or _barred(of)
    verdict: VerdictWord = "not-comparable"
    if obstacles:
        why = "; ".join(obstacles)
    elif published is None:
        why = "no published ratio of these runs"
    elif barred:
        why = barred
    else:
        change = value / published - 1
        verdict = grade(change, RATIO_TOLERANCE)
        why = f"{100 * change:+.1f} %, tolerance {100 * RATIO_TOLERANCE:.0f} %"
    shown = None if obstacles else value
    return Ratio(kind, over.identity, of.identity, shown, published, source, verdict, why)


def _obstacles(one: Group, other: Group, *, batches_may_differ: bool) -> list[str]:
    obstacles = []
    devices = [device_names(group.first) for group in (one, other)]
    if devices[0] != devices[1]:
        obstacles.append(f"ran on {devices[0]} and on {devices[1]}")
    configs = [group.report.config for group in (one, other)]
    if (
        not batches_may_differ
        and configs[0]["batch"]["per_device"] != (configs[1]["batch"]["per_device"])
    ):
        batches = " and ".join(str(config["batch"]["per_device"]) for config in configs)
        obstacles.append(f"batches of {batches} a device: that is no weak scaling")
    for key in ("backend", "image_size"):
        values = [config["data"].get(key) for config in configs]
        if values[0] != values[1]:
            obstacles.append(f"data.{key} {values[0]} and {values[1]}")
    return obstacles


def _barred(group: Group) -> str | None:
    """Say why the group's speed is comparable with no published one; None where it is."""
    entries = [entry for entry in group.newest_published if entry.figure == SPEED]
    if not entries:
        return f"no published speed of {group.identity.text}"
    return None if entries[0].comparable else entries[0].why


def _ids(group: Group) -> list[str]:
    return list(dict.fromkeys(entry.id for entry in group.published))


def _rates(group: Group, num_devices: int) -> dict[str, float]:
    """Published images/s on ``num_devices``, by the id of the publication's run."""
    ids = _ids(group)
    return {
        row.id: row.value
        for row in load_published()
        if row.figure == SPEED and row.num_devices == num_devices and row.id in ids
    }


def _quotient(
    above: dict[str, float], below: dict[str, float], times: float = 1.0
) -> tuple[float | None, str | None]:
    if not above or not below:
        return None, None
    (one, fast), (other, slow) = next(iter(above.items())), next(iter(below.items()))
    return fast / (times * slow), one if one == other else f"{one}, {other}"


def _published_scaling(base: Group, other: Group) -> tuple[float | None, str | None]:
    few, many = base.identity.num_devices, other.identity.num_devices
    above = _rates(other, many)
    # One publication's two speeds: those of two would compare two releases as well.
    below = {key: rate for key, rate in _rates(other, few).items() if key in above}
    if below:
        above = {key: rate for key, rate in above.items() if key in below}
    else:
        below = _rates(base, few)
    return _quotient(above, below, many / few)
