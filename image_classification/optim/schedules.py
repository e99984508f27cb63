"""Learning-rate schedules: the learning rate as a pure function of the step.

A schedule has ``epochs * steps_per_epoch`` steps, counted from 0, even if the run stops earlier.
Step s of the warm-up, which takes ``warmup_epochs``, has ``peak * (s + 1) / warmup_steps``. The
named shape follows per step, from the peak at the first step after the warm-up to the final value
at the schedule's end. NVIDIA's published runs changed the rate once per epoch; both agree at the
start of each epoch after the warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from image_classification.config.schema import ScheduleConfig
from image_classification.core.errors import ConfigError
from image_classification.core.registry import Registry


@dataclass(frozen=True)
class Point:
    """A position in the schedule.

    fraction: 0..1 from the end of the warm-up to the end of the schedule. epochs: since the start
    of the schedule, including the warm-up, as for milestones.
    """

    cfg: ScheduleConfig
    peak_lr: float
    fraction: float
    epochs: float


Shape = Callable[[Point], float]

SHAPES: Registry[Shape] = Registry("schedule")

_WITH_END_LR = ("cosine", "linear", "exponential", "polynomial")


def _between(p: Point, share: float) -> float:
    return p.cfg.end_lr + (p.peak_lr - p.cfg.end_lr) * share


@SHAPES.register("constant")
def _constant(p: Point) -> float:
    """The peak."""
    return p.peak_lr


@SHAPES.register("step")
def _step(p: Point) -> float:
    """The peak, multiplied by ``gamma`` at each milestone (arXiv:1512.03385, section 3.4)."""
    passed = sum(p.epochs >= m for m in p.cfg.milestone_epochs)
    return p.peak_lr * math.pow(p.cfg.gamma, passed)


@SHAPES.register("cosine")
def _cosine(p: Point) -> float:
    """Half a cosine from the peak to ``end_lr`` (arXiv:1608.03983, one period)."""
    return _between(p, 0.5 * (1.0 + math.cos(math.pi * p.fraction)))


@SHAPES.register("linear")
def _linear(p: Point) -> float:
    """A straight line from the peak to ``end_lr``."""
    return _between(p, 1.0 - p.fraction)


@SHAPES.register("exponential")
def _exponential(p: Point) -> float:
    """From the peak to ``end_lr`` by a constant factor per step."""
    return p.peak_lr * math.pow(p.cfg.end_lr / p.peak_lr, p.fraction)


@SHAPES.register("polynomial")
def _polynomial(p: Point) -> float:
    """(1 - fraction) ** ``power``, scaled between the peak and ``end_lr``."""
    return _between(p, math.pow(1.0 - p.fraction, p.cfg.power))


@SHAPES.register("list")
def _list(p: Point) -> float:
    """The peak, then ``milestone_lrs[i]`` from ``milestone_epochs[i]`` on."""
    passed = sum(p.epochs >= m for m in p.cfg.milestone_epochs)
    return p.cfg.milestone_lrs[passed - 1] if passed else p.peak_lr


class Schedule:
    """The learning rate of every optimizer step.

    Raises:
        ConfigError: unknown name, or settings that contradict each other.
        ValueError: ``steps_per_epoch`` is not positive.
    """

    def __init__(self, cfg: ScheduleConfig, peak_lr: float, steps_per_epoch: int) -> None:
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be positive, not {steps_per_epoch}")
        self._shape = SHAPES.get(cfg.name)
        _check(cfg, peak_lr)
        self.cfg = cfg
        self.peak_lr = float(peak_lr)
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = cfg.epochs * steps_per_epoch
        self.warmup_steps = min(round(cfg.warmup_epochs * steps_per_epoch), self.total_steps)

    def lr(self, step: int) -> float:
        """Return the rate of optimizer step ``step``; after the end, the final value."""
        if step < 0:
            raise ValueError(f"steps count from 0, not {step}")
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        step = min(step, self.total_steps)
        left = self.total_steps - self.warmup_steps
        fraction = (step - self.warmup_steps) / left if left else 1.0
        return self._shape(Point(self.cfg, self.peak_lr, fraction, step / self.steps_per_epoch))


def _check(cfg: ScheduleConfig, peak_lr: float) -> None:
    if cfg.warmup_epochs > cfg.epochs:
        raise ConfigError(
            f"schedule.warmup_epochs {cfg.warmup_epochs:g} is longer than the schedule "
            f"(schedule.epochs {cfg.epochs}); shorten the warm-up or lengthen the schedule "
            "(to stop early, set run.stop_epoch and leave schedule.epochs)"
        )
    if cfg.name in _WITH_END_LR:
        if cfg.end_lr > peak_lr:
            raise ConfigError(
                f"schedule.end_lr {cfg.end_lr:g} is above the peak optim.lr {peak_lr:g}; lower "
                "schedule.end_lr or raise optim.lr"
            )
        if cfg.name == "exponential" and cfg.end_lr <= 0:
            raise ConfigError(
                "schedule 'exponential' decays by a constant factor and never reaches "
                f"schedule.end_lr {cfg.end_lr:g}; set schedule.end_lr above 0, for example "
                f"{peak_lr * 1e-3:g}"
            )
    elif cfg.end_lr != 0:
        raise ConfigError(
            f"schedule {cfg.name!r} has no end value, but schedule.end_lr is {cfg.end_lr:g}; "
            f"set it to 0 or use one of {', '.join(_WITH_END_LR)}"
        )
    if cfg.name in ("step", "list"):
        times = cfg.milestone_epochs
        if not times:
            raise ConfigError(
                f"schedule {cfg.name!r} needs schedule.milestone_epochs; list the epochs where "
                "the rate changes, or use schedule.name=constant"
            )
        if any(a >= b for a, b in pairwise(times)) or min(times) < 0:
            raise ConfigError(
                f"schedule.milestone_epochs {list(times)} must increase from 0; sort them and "
                "remove duplicates"
            )
    if cfg.name == "list":
        if len(cfg.milestone_lrs) != len(cfg.milestone_epochs):
            raise ConfigError(
                f"schedule 'list' has {len(cfg.milestone_epochs)} schedule.milestone_epochs but "
                f"{len(cfg.milestone_lrs)} schedule.milestone_lrs; give one rate for each epoch"
            )
        if any(lr < 0 for lr in cfg.milestone_lrs):
            raise ConfigError(
                f"schedule.milestone_lrs {list(cfg.milestone_lrs)} has a negative rate; rates "
                "must be at least 0"
            )
    elif cfg.milestone_lrs:
        raise ConfigError(
            f"schedule {cfg.name!r} does not use schedule.milestone_lrs; remove them or set "
            "schedule.name=list"
        )
