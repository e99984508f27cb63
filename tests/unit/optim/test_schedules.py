import math
from itertools import pairwise
from typing import Any

import pytest

from image_classification.config.schema import ScheduleConfig
from image_classification.core.errors import ConfigError
from image_classification.optim.schedules import SHAPES, Schedule


def table(
    epochs: int, steps_per_epoch: int, peak: float, upto: int | None = None, **cfg: Any
) -> list[float]:
    schedule = Schedule(ScheduleConfig(epochs=epochs, **cfg), peak, steps_per_epoch)
    end = epochs * steps_per_epoch if upto is None else upto
    return [schedule.lr(step) for step in range(end + 1)]


# Computed by hand: peak 1, 2 steps per epoch; the last entry is the end of the schedule.
GOLDEN: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant": (dict(name="constant", epochs=2), [1, 1, 1, 1, 1]),
    "linear": (dict(name="linear", epochs=2), [1, 0.75, 0.5, 0.25, 0]),
    "linear to 0.2": (dict(name="linear", epochs=2, end_lr=0.2), [1, 0.8, 0.6, 0.4, 0.2]),
    "cosine": (
        dict(name="cosine", epochs=2),
        [1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5), 0],
    ),
    "polynomial": (dict(name="polynomial", epochs=2), [1, 0.5625, 0.25, 0.0625, 0]),
    "polynomial 1": (
        dict(name="polynomial", epochs=2, power=1.0),
        [1, 0.75, 0.5, 0.25, 0],
    ),
    "exponential": (dict(name="exponential", epochs=2, end_lr=1e-4), [1, 0.1, 0.01, 0.001, 0.0001]),
    "step": (
        dict(name="step", epochs=3, milestone_epochs=(1.0, 2.5), gamma=0.1),
        [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01],
    ),
    "list": (
        dict(name="list", epochs=3, milestone_epochs=(0.5, 2.0), milestone_lrs=(3.0, 0.5)),
        [1, 3, 3, 3, 0.5, 0.5, 0.5],
    ),
    # One warm-up epoch of two steps, then the line over the remaining two.
    "warm-up": (dict(name="linear", epochs=2, warmup_epochs=1.0), [0.5, 1, 1, 0.5, 0]),
    # Milestones are absolute: epoch 2 is the third epoch with or without a warm-up.
    "warm-up step": (
        dict(name="step", epochs=3, warmup_epochs=1.5, milestone_epochs=(2.0,), gamma=0.5),
        [1 / 3, 2 / 3, 1, 1, 0.5, 0.5, 0.5],
    ),
    "all warm-up": (dict(name="cosine", epochs=1, warmup_epochs=1.0), [0.5, 1, 0]),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_rates_computed_by_hand(case: str) -> None:
    cfg, expected = GOLDEN[case]
    assert table(steps_per_epoch=2, peak=1.0, **cfg) == pytest.approx(expected, abs=1e-12)


def test_every_shape_has_a_table() -> None:
    assert {cfg["name"] for cfg, _ in GOLDEN.values()} == set(SHAPES)


def test_published_resnet50_recipe() -> None:
    # 90 epochs of 625 steps (2048 images), lr 2.048, 8 epochs of warm-up, cosine.
    schedule = Schedule(ScheduleConfig(name="cosine", epochs=90, warmup_epochs=8.0), 2.048, 625)
    assert schedule.lr(0) == pytest.approx(2.048 / 5000)
    assert schedule.lr(4999) == 2.048
    assert schedule.lr(5000) == 2.048
    middle = 625 * 49
    assert schedule.lr(middle) == pytest.approx(1.024)
    # NVIDIA's code keeps this value during all of epoch 60.
    at_60 = 0.5 * (1 + math.cos(math.pi * 52 / 82)) * 2.048
    assert schedule.lr(60 * 625) == pytest.approx(at_60)


def test_rates_are_python_floats() -> None:
    for name in SHAPES:
        cfg = ScheduleConfig(
            name=name,
            epochs=4,
            warmup_epochs=1.0,
            end_lr=1e-3 if name == "exponential" else 0.0,
            milestone_epochs=(2.0,),
            milestone_lrs=(0.1,) if name == "list" else (),
        )
        schedule = Schedule(cfg, 1, 3)
        assert all(type(schedule.lr(s)) is float for s in (0, 2, 3, 7, 12, 99))


def test_rate_after_the_end_is_the_last_one() -> None:
    for cfg, expected in GOLDEN.values():
        values = table(steps_per_epoch=2, peak=1.0, upto=30, **cfg)
        assert values[len(expected) :] == [values[len(expected) - 1]] * (31 - len(expected))


def test_rates_never_increase_after_the_warm_up() -> None:
    for name in ("cosine", "linear", "polynomial", "exponential", "step", "constant"):
        end = 1e-3 if name == "exponential" else 0.0
        values = table(90, 7, 2.0, name=name, warmup_epochs=5.0, end_lr=end)
        tail = values[5 * 7 :]
        assert tail[0] == 2.0
        assert all(a >= b for a, b in pairwise(tail))


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (dict(warmup_epochs=5.0), "warmup_epochs 5 is longer"),
        (dict(end_lr=2.0), "above the peak"),
        (dict(name="exponential"), "end_lr above 0"),
        (dict(name="step", end_lr=0.1), "has no end value"),
        (dict(name="step", milestone_epochs=()), "needs schedule.milestone_epochs"),
        (dict(name="step", milestone_epochs=(3.0, 1.0)), "must increase"),
        (dict(name="list", milestone_epochs=(1.0, 2.0), milestone_lrs=(0.1,)), "2 .* but 1"),
        (dict(name="list", milestone_epochs=(1.0,), milestone_lrs=(-0.1,)), "negative"),
        (dict(name="cosine", milestone_lrs=(0.1,)), "does not use"),
        (dict(name="cosin"), "cosine"),
    ],
)
def test_contradicting_settings_are_refused(cfg: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Schedule(ScheduleConfig(epochs=4, **cfg), 1.0, 10)


def test_negative_steps_and_empty_epochs_are_errors() -> None:
    with pytest.raises(ValueError, match="steps_per_epoch"):
        Schedule(ScheduleConfig(epochs=1), 1.0, 0)
    with pytest.raises(ValueError, match="from 0"):
        Schedule(ScheduleConfig(epochs=1), 1.0, 1).lr(-1)
