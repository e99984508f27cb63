"""The live view: what it shows of a run's activity, at several widths and times."""

import io

import pytest
from rich.console import Console

from image_classification.core.types import Activity, Record
from image_classification.reporting.live_view import (
    LiveView,
    num_epochs,
    pack,
    sparkline,
    whole_time,
)

UNKNOWN = "time left unknown"
TELEMETRY = {
    "power_w": 2105.4,
    "utilization": 0.974,
    "memory_bytes": 9 * 2**30,
    "temperature_c": 71.0,
}


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Screen:
    """A live view, its clock, and the activity that it shows; steps have 2048 images."""

    def __init__(self, *records: Record) -> None:
        self.clock = Clock()
        self.activity = Activity()
        self.view = LiveView(self.activity, 2048, self.clock)
        for record in records:
            self.view.update(record)

    def train(self, *, to_step: int, step_s: float, wait_s: float = 0.0) -> None:
        """Take steps up to ``to_step``, with a refresh after each."""
        if not self.activity.task.trains:
            self.activity.begin("training", trains=True)
        while self.activity.step < to_step:
            self.clock.now_s += step_s
            self.activity.step += 1
            self.activity.data_wait_s += wait_s
            self.lines()

    def lines(self, width: int = 200) -> list[str]:
        console = Console(file=(out := io.StringIO()), width=width, force_terminal=False)
        console.print(self.view)
        return [line.rstrip() for line in out.getvalue().splitlines()]

    def text(self) -> str:
        """All of it, with single spaces."""
        return " ".join(" ".join(self.lines()).split())


@pytest.fixture
def start(records):
    return records[0]


def test_before_the_first_record_it_says_what_is_going_on():
    screen = Screen()
    assert screen.text() == "starting, 0 s elapsed 0 s"
    screen.clock.now_s += 3
    screen.activity.begin("opening the training images")
    screen.lines()
    screen.clock.now_s += 2
    assert screen.text() == "opening the training images, 2 s elapsed 5 s"


def test_training_shows_the_step_of_every_second_without_a_record(start):
    screen = Screen(start)
    screen.activity.begin("first step", trains=True)
    screen.clock.now_s += 2
    assert screen.text().startswith("first step, 0 s epoch 1/2 step 0/8 elapsed 2 s")
    assert screen.text().endswith(f"0 % {UNKNOWN}")
    screen.train(to_step=1, step_s=30)
    screen.train(to_step=3, step_s=1, wait_s=0.25)
    text = screen.text()
    assert "step 3/8" in text and "38 %" in text
    # The first step, which compiles, is in neither figure.
    assert "2,048 images/s data wait 25.0 %" in text


def test_time_left_counts_down_between_steps_and_is_never_zero(start):
    screen = Screen(Record("start", 0, 0, {**start.values, "num_val_images": None}))
    screen.train(to_step=2, step_s=10)
    assert UNKNOWN in screen.text(), "one step after the first one is not enough"
    screen.train(to_step=6, step_s=10)
    assert "20 s left" in screen.text()
    screen.clock.now_s += 4
    assert "16 s left" in screen.text()
    screen.clock.now_s += 60
    assert "10 s left" in screen.text(), "the step after this one is still to come"
    screen.train(to_step=7, step_s=1)
    screen.clock.now_s += 600
    assert "1 s left" in screen.text()
    screen.train(to_step=8, step_s=1)
    assert UNKNOWN in screen.text(), "what follows the last step is not known"


def test_time_left_has_the_validations(start):
    screen = Screen(Record("start", 0, 0, {**start.values, "num_val_images": None}))
    screen.view.update(Record("validation", 0, 0, {"top1": 1.0, "time_s": 50.0}))
    screen.view.update(Record("validation_ema", 0, 0, {"top1": 1.0, "time_s": 10.0}))
    screen.train(to_step=7, step_s=10)
    assert screen.view.left_s() == pytest.approx(10 + 60)


def test_time_left_before_the_first_validation_has_an_estimate_of_it(start):
    screen = Screen(Record("start", 0, 0, {**start.values, "num_val_images": 2048 * 3}))
    screen.train(to_step=7, step_s=10)
    assert screen.view.left_s() == pytest.approx(10 + 10)


def test_validation_moves_every_second_and_has_the_epoch_of_its_steps(start):
    screen = Screen(start)
    screen.train(to_step=4, step_s=1)
    screen.activity.begin("validating", 50_000, "images")
    screen.lines()
    for _ in range(2):
        screen.clock.now_s += 1
        screen.activity.done += 5_000
    assert screen.text().startswith("validating 10,000/50,000 images epoch 1/2 step 4/8 ")
    # Of this validation 8 s, then four steps of 1 s and the next validation.
    assert screen.view.left_s() == pytest.approx(8 + 4 + 50_000 / 2048 / 3)
    screen.train(to_step=5, step_s=1)
    assert "epoch 2/2" in screen.text()


def test_an_evaluation_has_a_bar_and_time_left_of_its_images():
    screen = Screen(Record("start", 0, 0, {"num_val_images": 50_000}))
    screen.activity.begin("validating", 50_000, "images")
    assert UNKNOWN in screen.text()
    screen.clock.now_s += 5
    screen.activity.done = 10_000
    first, second = screen.lines(80)
    assert first == "validating 10,000/50,000 images  elapsed 5 s"
    assert "━" in second and second.endswith("  20 %  20 s left")


def test_waiting_for_data_is_said_after_a_second(start):
    screen = Screen(start)
    screen.train(to_step=2, step_s=1)
    screen.activity.waiting_since_s = screen.clock.now_s
    assert screen.text().startswith("training ")
    screen.clock.now_s += 12
    assert screen.text().startswith("waiting for data, 12 s ")
    screen.activity.waiting_since_s = None
    assert screen.text().startswith("training ")


def test_saving_and_stopping_are_said(start):
    screen = Screen(start)
    screen.train(to_step=4, step_s=1)
    screen.activity.saving_step = 4
    assert "saving step 4" in screen.text()
    screen.activity.stopping = "SIGINT"
    assert screen.text().startswith("SIGINT: stopping after this step ")
    assert UNKNOWN in screen.text()
    screen.activity.begin("saving step 4")
    assert screen.text().startswith("saving step 4, 0 s ")
    screen.activity.stopping, screen.activity.ended = None, True
    assert UNKNOWN in screen.text()
    assert screen.text().count("saving") == 1


def test_the_loss_of_single_steps_shows_before_its_record(start, records):
    screen = Screen(start)
    screen.activity.loss = 6.5
    assert "loss 6.5000" in screen.text()
    screen.activity.loss = 3.25
    assert "loss 3.2500 █▁" in screen.text()
    screen.activity.loss = float("nan")
    assert "loss nan" in screen.text()


def test_a_resumed_run_starts_at_its_step(records):
    screen = Screen(Record("start", 6, 1, {**records[0].values, "start_step": 6}))
    assert screen.view.left_s() is None
    assert "epoch 2/2 step 6/8" in screen.text() and "75 %" in screen.text()


def test_telemetry_and_figures_of_records(records):
    telemetry = Record("telemetry", 6, 1, {**TELEMETRY, "temperature_c": None})
    text = Screen(*(r for r in records if r.step <= 6), telemetry).text()
    assert "8,000 images/s data wait 25.0 % lr 1.5" in text
    assert "memory 9.0 GiB power 2,105 W busy 97 % peak memory 3.0 GiB loss scale 128" in text
    assert "°C" not in text
    text = Screen(records[0], Record("telemetry", 1, 0, dict.fromkeys(TELEMETRY))).text()
    assert not any(word in text for word in ("power", "busy", "°C", "None"))


def test_last_best_and_ema_top1(records):
    first = [r for r in records if r.step <= 6]
    later = Record("validation", 8, 1, {"top1": 29.0, "is_best": False})
    average = Record("validation_ema", 8, 1, {"top1": 55.25, "is_best": True})
    assert "top-1 29.00 % best 30.00 % (epoch 1)" in Screen(*first, later).text()
    text = Screen(*first, later, average).text()
    assert "top-1 29.00 % EMA top-1 55.25 % best 55.25 % (epoch 2)" in text
    assert "best" not in Screen(records[0], later).text()


LARGEST = {
    "loss": 6.9078,
    "lr": 0.0001234567,
    "memory_bytes": 1023.9 * 2**30,
    "loss_scale": 2.0**24,
    "skipped_steps": 0,
}
SMALLEST = {**LARGEST, "loss": 0.5, "lr": 0.1, "loss_scale": 1.0, "memory_bytes": 2**20}


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_fits_and_each_figure_stays_on_its_line(records, width):
    values = {**records[0].values, "total_steps": 112_590, "epochs": 90, "steps_per_epoch": 1251}
    validation = Record("validation", 1251, 0, {"top1": 7.25, "is_best": True})
    shown = []
    for step, step_s, figures, telemetry in (
        (1252, 200.0, SMALLEST, dict.fromkeys(TELEMETRY, 0.0)),
        (112_500, 0.01, LARGEST, TELEMETRY),
    ):
        screen = Screen(Record("start", 0, 0, values), validation)
        screen.activity.step = step
        screen.train(to_step=step + 4, step_s=step_s)
        for record in (Record("telemetry", 1, 0, telemetry), Record("step", step, 0, figures)):
            screen.view.update(record)
            screen.view.update(record)
        shown.append(screen.lines(width))
    few, many = shown
    assert max(map(len, few + many)) <= width
    assert len(few) == len(many) <= {40: 13, 80: 6, 120: 5}[width]

    def places(lines):
        words = ("epoch", "left", "loss", "images/s", "data wait", "lr", "top-1", "power", "busy")
        return [next(n for n, line in enumerate(lines) if word in line) for word in words]

    assert places(few) == places(many), "each figure stays on its line"


@pytest.mark.parametrize("width", [24, 30, 40])
def test_no_line_is_wider_than_a_narrow_terminal(start, width):
    screen = Screen(start)
    screen.train(to_step=6, step_s=1)
    assert [line for line in screen.lines(width) if len(line) > width] == []
    assert any("left" in line for line in screen.lines(width))


def test_num_epochs_is_what_the_run_reaches():
    start = {"epochs": 90, "total_steps": 1500, "steps_per_epoch": 500}
    assert num_epochs(start) == 3
    assert num_epochs({**start, "total_steps": 1501}) == 4
    assert num_epochs({**start, "total_steps": None}) == 90
    assert num_epochs({}) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (599.4, "9 min 59 s"),
        (3569, "59 min"),
        (3600 * 2 + 310, "2 h 05 min"),
        (3600 * 50, "2 d 02 h"),
    ],
)
def test_whole_time(seconds, text):
    assert whole_time(seconds) == text


def test_sparkline():
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([8.0, 4.5, 1.0]) == "█▅▁"
    assert sparkline([4.0, 4.0, 2.0, 2.0], width=2) == "█▁"
    assert len(sparkline([float(i) for i in range(500)])) == 16


def test_a_long_run_keeps_the_shape_of_its_loss(start):
    screen = Screen(start)
    for step in range(5000):
        screen.view.update(Record("step", step, 0, {"loss": 7.0 - step / 1000}))
    line = screen.text()
    assert "██▇▇▆▆▅▅▄▄▃▃▂▂▁▁" in line
    assert "loss 2.0010" in line


def test_pack_keeps_figures_whole():
    assert pack(["aa", "bbb", "c"], 7) == ["aa  bbb", "c"]
    assert pack(["aa", "bbb", "c"], 6, indent=1) == ["aa", " bbb", " c"]
    assert pack(["too long for it", "c"], 6) == ["too long for it", "c"]
    assert pack(["aa   ", "b"], 20) == ["aa     b"]
    assert pack([], 10) == []
