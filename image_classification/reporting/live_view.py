"""The live view of a run on a terminal: what it is doing, how far it is, its latest figures."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich import table
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.text import Text

from image_classification.core.types import Activity, Record
from image_classification.core.units import duration, number, percent, rate, size

BETWEEN = "  "
_BARS = "▁▂▃▄▅▆▇█"
_SPARKLINE_WIDTH = 16
# Losses that are kept; then each two of them become their mean, and so do later ones.
_LOSSES = 512
# Speed and data wait are of the steps within this time.
_WINDOW_S = 30.0
# Without gradients an image takes about a third of the time of training; used before the first
# validation, for the time left.
_EVALUATION_COST = 1 / 3


@dataclass(frozen=True)
class Packed:
    """Figures side by side, as many per line as fit; indent: of the lines after the first."""

    figures: Sequence[str]
    style: str = ""
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one line at a time; only a figure longer than a whole line is folded."""
        width = options.max_width
        for line in pack(self.figures, width, self.indent):
            # Prose breaks between words; a path longer than the line cannot.
            fits = max(map(cell_len, line.split()), default=0) <= width - self.indent
            for part in [line] if fits else chop_cells(line, width):
                yield Text(part, style=self.style)


def pack(figures: Iterable[str], width: int, indent: int = 0) -> list[str]:
    """Join ``figures`` into lines of at most ``width`` columns; a longer figure has its own."""
    lines: list[str] = []
    for figure in figures:
        joined = f"{lines[-1]}{BETWEEN}{figure}" if lines else figure
        if lines and cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(" " * indent + figure if lines else figure)
    return [line.rstrip() for line in lines]


def lr_text(lr: float | None) -> str:
    """Return a learning rate with four significant digits; ``-`` for None."""
    return "-" if lr is None else f"{lr:.4g}"


def data_wait_text(values: Mapping[str, Any], time_key: str) -> list[str]:
    """Return the share of a record's time spent waiting for data, if it was measured."""
    time_s, wait_s = values.get(time_key), values.get("data_wait_s")
    return [f"data wait {percent(wait_s / time_s)}"] if time_s and wait_s is not None else []


def num_epochs(start: Mapping[str, Any]) -> int | None:
    """Return the epochs that a run reaches, from its start record: its schedule's or fewer."""
    epochs: int | None = start.get("epochs")
    total, per_epoch = start.get("total_steps"), start.get("steps_per_epoch")
    if epochs and total and per_epoch:
        return min(epochs, -(-int(total) // int(per_epoch)))
    return epochs


def whole_time(seconds: float, least_s: int = 0) -> str:
    """Return a time in whole seconds or minutes, at least ``least_s`` seconds."""
    whole_s = max(least_s, round(seconds))
    if whole_s < 60:
        return f"{whole_s} s"
    if whole_s < 600:
        return duration(whole_s)
    minutes = round(whole_s / 60)
    return f"{minutes} min" if minutes < 60 else duration(60 * minutes)


def sparkline(values: Sequence[float], width: int = _SPARKLINE_WIDTH) -> str:
    """Return finite ``values`` as bars of eight heights; means where there are more than fit."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(_BARS[round(7 * (mean - low) / span) if span else 0] for mean in means)


# Width of the longest text of each figure of the telemetry.
_DEVICE_FIGURES: Sequence[tuple[str, Callable[[Any], str], int]] = (
    ("memory_bytes", lambda v: f"memory {size(v)}", 17),
    ("power_w", lambda v: f"power {number(v, 0)} W", 14),
    ("utilization", lambda v: f"busy {percent(v, 0)}", 10),
    ("temperature_c", lambda v: f"{number(v, 0)} °C", 6),
)


@dataclass(frozen=True)
class _Point:
    """How far training was at a time; data_wait_s: sum up to then."""

    at_s: float
    step: int
    data_wait_s: float


class LiveView:
    """What the live view shows: drawn again at any time, it reads the activity as it is then.

    Each figure has its own place, wide enough for its longest text, so that nothing moves from
    one refresh to the next. Figures that are not measured are left out. now_s: the clock of
    ``activity.waiting_since_s``.
    """

    def __init__(
        self,
        activity: Activity,
        global_batch: int,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        # The console draws from the thread that prints a record and from the one that refreshes.
        self._lock = threading.Lock()
        self._activity = activity
        self._global_batch = global_batch
        self._now_s = now_s
        self._started_s = self._task_at_s = now_s()
        self._task = activity.task
        self._start: Mapping[str, Any] = {}
        self._start_step = 0
        self._values: Mapping[str, Any] = {}
        self._telemetry: Mapping[str, Any] = {}
        self._top1: dict[str, float] = {}
        self._best: tuple[float, int] | None = None
        self._losses: list[float] = []
        self._losses_per_mean = 1
        self._unkept: list[float] = []
        self._last_loss: float | None = None
        # Of the training since it began or last paused, and sums over all of it.
        self._points: deque[_Point] = deque()
        self._trained_s = 0.0
        self._trained_steps = 0
        self._images_per_s: float | None = None
        self._data_wait: float | None = None
        self._validation_s: float | None = None

    def update(self, record: Record) -> None:
        """Store the record's figures."""
        with self._lock:
            self._note(record)

    def _note(self, record: Record) -> None:
        values = record.values
        if record.kind == "start":
            self._start = values
            self._start_step = values.get("start_step") or 0
        elif record.kind == "step":
            self._values = values
            self._note_loss(values.get("loss"))
        elif record.kind == "telemetry":
            self._telemetry = values
        elif record.kind in ("validation", "validation_ema") and values.get("top1") is not None:
            self._top1[record.kind] = values["top1"]
            if values.get("is_best"):
                self._best = (values["top1"], record.epoch)
            if values.get("time_s") is not None:
                first = record.kind == "validation"
                self._validation_s = values["time_s"] + (0 if first else self._validation_s or 0)

    def _note_loss(self, loss: float | None) -> None:
        self._last_loss = loss
        if loss is not None and math.isfinite(loss):
            self._unkept.append(loss)
        if len(self._unkept) == self._losses_per_mean:
            self._losses.append(sum(self._unkept) / len(self._unkept))
            self._unkept.clear()
        if len(self._losses) == _LOSSES:
            pairs = zip(self._losses[::2], self._losses[1::2], strict=True)
            self._losses = [(a + b) / 2 for a, b in pairs]
            self._losses_per_mean *= 2

    def _observe(self, now_s: float) -> None:
        """Read the activity: a changed task, new steps, a new loss."""
        activity = self._activity
        if activity.task is not self._task:
            self._task, self._task_at_s = activity.task, now_s
            self._points.clear()
        if activity.loss is not None:
            loss, activity.loss = activity.loss, None
            self._note_loss(loss)
        # The first step includes compilation and the choice of kernels.
        if not self._task.trains or activity.step <= self._start_step:
            return
        points = self._points
        if points and points[-1].step == activity.step:
            return
        if points:
            self._trained_s += now_s - points[-1].at_s
            self._trained_steps += activity.step - points[-1].step
        points.append(_Point(now_s, activity.step, activity.data_wait_s))
        while len(points) > 2 and points[1].at_s < now_s - _WINDOW_S:
            points.popleft()
        if len(points) > 1 and now_s > points[0].at_s:
            first, last, time_s = points[0], points[-1], now_s - points[0].at_s
            self._images_per_s = (last.step - first.step) * self._global_batch / time_s
            self._data_wait = min(1.0, (last.data_wait_s - first.data_wait_s) / time_s)

    def left_s(self) -> float | None:
        """Return the seconds left, validations included; None while it cannot be known.

        Also None once the run ends or was asked to stop: saving and the report are not estimated.
        """
        if self._activity.ended or self._activity.stopping is not None:
            return None
        now_s, step = self._now_s(), self._activity.step
        task, total = self._task, self._start.get("total_steps") or 0
        left_s, done = 0.0, self._activity.done
        if task.total and done:
            left_s = (now_s - self._task_at_s) * (task.total - done) / done
        if not total:
            return left_s or None
        if step < total:
            if self._trained_steps < 2 or self._trained_s <= 0:
                return None
            pace_s = self._trained_s / self._trained_steps
            left_s += pace_s * (total - step)
            if self._points:
                left_s -= min(pace_s, now_s - self._points[-1].at_s)
        per_epoch = self._start.get("steps_per_epoch") or total
        left_s += self._one_validation_s() * (total // per_epoch - step // per_epoch)
        return left_s if step < total else left_s or None

    def _one_validation_s(self) -> float:
        if self._validation_s is not None:
            return self._validation_s
        images = self._start.get("num_val_images") or 0
        return _EVALUATION_COST * images / self._images_per_s if self._images_per_s else 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield what is being done, a bar with the time left, and the figures."""
        with self._lock:
            drawn = list(self._draw(options))
        yield from drawn

    def _draw(self, options: ConsoleOptions) -> RenderResult:
        now_s = self._now_s()
        self._observe(now_s)
        words = self._position()
        words.append((f"elapsed {whole_time(now_s - self._started_s)}", 0))
        yield Packed([self._doing(now_s), *(text.ljust(width) for text, width in words)], "bold")
        share = self._share()
        if share is not None:
            done = f"{percent(share, 0):>5}"
            left_s, left = self.left_s(), "time left unknown"
            if left_s is not None:
                left = f"{whole_time(left_s, least_s=1)} left"
            # As wide as the longest time, so that the bar keeps its length.
            rest = options.max_width - cell_len(done) - 17 - 2 * len(BETWEEN)
            cells: list[Text | ProgressBar] = []
            if rest > 0:
                cells.append(ProgressBar(total=1.0, completed=share, width=min(rest, 60)))
            cells += [Text(done, no_wrap=True), Text(left, style="bold", no_wrap=True)]
            progress = table.Table.grid(padding=(0, len(BETWEEN)), pad_edge=False)
            progress.add_row(*cells)
            yield progress
        figures = self._figures(with_sparkline=not options.ascii_only)
        if figures:
            yield Packed([figure.ljust(width) for figure, width in figures])

    def _doing(self, now_s: float) -> str:
        """Return the task in words, with the seconds it has taken where it has no length."""
        activity, task = self._activity, self._task
        waiting_since_s = activity.waiting_since_s
        if activity.stopping is not None and (task.trains or task.total):
            return f"{activity.stopping}: stopping after this step"
        if waiting_since_s is not None and now_s - waiting_since_s >= 1.0:
            return f"waiting for data, {whole_time(now_s - waiting_since_s)}"
        if task.total:
            done = f"{activity.done:,}".rjust(len(f"{task.total:,}"))
            return f"{task.name} {done}/{task.total:,} {task.unit}"
        if activity.step > self._start_step and task.trains:
            return task.name
        return f"{task.name}, {whole_time(now_s - self._task_at_s)}"

    def _position(self) -> list[tuple[str, int]]:
        """Return epoch, step and the save in progress, each with the width of its place."""
        total, epochs = self._start.get("total_steps"), num_epochs(self._start)
        step, found = self._activity.step or self._start_step, []
        if total:
            per_epoch = self._start.get("steps_per_epoch")
            if per_epoch and epochs:
                # After an epoch's last step it is still that epoch until training goes on.
                epoch = step // per_epoch + 1 if self._task.trains else -(-step // per_epoch)
                text = f"epoch {min(max(epoch, 1), epochs)}/{epochs}"
                found.append((text, 7 + 2 * len(str(epochs))))
            found.append((f"step {step:,}/{total:,}", 6 + 2 * len(f"{total:,}")))
        saving = self._activity.saving_step
        if saving is not None and self._task.trains:
            found.append((f"saving step {saving:,}", 0))
        return found

    def _share(self) -> float | None:
        """Return how much of the run, or of a task without steps, is done."""
        total = self._start.get("total_steps")
        if total:
            return min(1.0, float((self._activity.step or self._start_step) / total))
        return self._activity.done / self._task.total if self._task.total else None

    def _loss_figure(self, with_sparkline: bool) -> list[tuple[str, int]]:
        if self._last_loss is None:
            return []
        text = f"loss {number(self._last_loss, 4)}"
        if not with_sparkline or len(self._losses) < 2:
            return [(text, 12)]
        return [(f"{text:<12} {sparkline(self._losses)}", 13 + _SPARKLINE_WIDTH)]

    def _figures(self, with_sparkline: bool) -> list[tuple[str, int]]:
        """Return each figure with the width of its place."""
        values = self._values
        figures = self._loss_figure(with_sparkline)
        images_per_s = self._images_per_s or values.get("images_per_s")
        if images_per_s is not None:
            figures.append((f"{rate(images_per_s)} images/s", 16))
        if self._data_wait is not None:
            figures.append((f"data wait {percent(self._data_wait)}", 17))
        else:
            figures += [(text, 17) for text in data_wait_text(values, "step_time_s")]
        if values:
            figures.append((f"lr {lr_text(values.get('lr'))}", 12))
        for kind, name in (("validation", "top-1"), ("validation_ema", "EMA top-1")):
            if kind in self._top1:
                figures.append((f"{name} {number(self._top1[kind])} %", len(name) + 9))
        if self._best is not None:
            best, epoch = self._best
            epochs = num_epochs(self._start) or epoch + 1
            figures.append((f"best {number(best)} % (epoch {epoch + 1})", 21 + len(str(epochs))))
        for key, device_text, width in _DEVICE_FIGURES:
            if self._telemetry.get(key) is not None:
                figures.append((device_text(self._telemetry[key]), width))
        if values.get("memory_bytes") is not None:
            figures.append((f"peak memory {size(values['memory_bytes'])}", 22))
        if values.get("loss_scale") is not None:
            figures.append((f"loss scale {_scale_text(values['loss_scale'])}", 17))
        if values.get("skipped_steps"):
            figures.append((f"skipped {values['skipped_steps']:,}", 0))
        return figures


def _scale_text(scale: float) -> str:
    """Return a loss scale as text; large powers of two as ``2^N``, so that they fit their place."""
    fraction, exponent = math.frexp(scale)
    return f"2^{exponent - 1}" if fraction == 0.5 and exponent > 17 else f"{scale:g}"
