"""The live display's lines: what they say, that they fit, and that they stay where they are."""

import io

import pytest
from rich.console import Console

from image_classification.core.types import Record
from image_classification.reporting.console import LiveView, pack

TELEMETRY = {
    "power_w": 2105.4,
    "utilization": 0.974,
    "memory_bytes": 9 * 2**30,
    "temperature_c": 71.0,
}


def shown(view, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(view)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def view_at(records, step, *others, seconds=4.0):
    """A view that took the records up to ``step``, which all came ``seconds`` after the start."""
    clock = iter([0.0, 10.0])
    view = LiveView(lambda: next(clock, 10.0 + seconds))
    for record in [*(r for r in records if r.step <= step), *others]:
        view.update(record)
    return view


def test_progress_figures_and_time_left(records):
    first, second, *rest = shown(view_at(records, 6), 100)
    assert first.startswith("epoch 2/2  ━")
    # Six of eight steps took 4 s from the start record on: two more take 1.3 s.
    assert first.endswith("  75 %  1.3 s left")
    assert second.split("  ")[0] == "step 6/8"
    everything = " ".join(" ".join([second, *rest]).split())
    assert everything == (
        "step 6/8 loss 4.0000 lr 1.5 8,000 images/s data wait 25.0 % "
        "top-1 30.00 % best 30.00 % (epoch 1) peak memory 3.0 GiB loss scale 128"
    )


def test_what_the_devices_do(records):
    view = view_at(records, 1, Record("telemetry", 1, 0, {**TELEMETRY, "temperature_c": None}))
    text = " ".join(" ".join(shown(view, 200)).split())
    assert "memory 9.0 GiB power 2,105 W busy 97 %" in text
    assert "°C" not in text


def test_what_no_sensor_measured_is_left_out(records):
    view = view_at(records, 1, Record("telemetry", 1, 0, dict.fromkeys(TELEMETRY)))
    text = " ".join(shown(view, 200))
    assert not any(word in text for word in ("power", "busy", "°C", "None", "-"))


def test_before_the_first_step_and_after_a_resume(records):
    view = LiveView(lambda: 5.0)
    view.update(Record("start", 6, 1, {**records[0].values, "start_step": 6}))
    assert view.eta_s() is None
    first, second = shown(view, 80)
    assert first.startswith("epoch 2/2")
    assert second == "step 6/8  waiting for the first steps"


def test_last_and_best_are_told_apart_and_the_average_has_its_own(records):
    later = Record("validation", 8, 1, {"top1": 29.0, "is_best": False})
    average = Record("validation_ema", 8, 1, {"top1": 55.25, "is_best": True})
    text = " ".join(" ".join(shown(view_at(records, 6, later), 200)).split())
    assert "top-1 29.00 % best 30.00 % (epoch 1)" in text
    text = " ".join(" ".join(shown(view_at(records, 6, later, average), 200)).split())
    assert "top-1 29.00 % EMA top-1 55.25 % best 55.25 % (epoch 2)" in text


def test_a_resumed_run_claims_no_best_before_there_is_a_better_one(records):
    start = Record("start", 4, 1, {**records[0].values, "start_step": 4})
    view = view_at([start], 4, Record("validation", 8, 1, {"top1": 29.0, "is_best": False}))
    assert "best" not in " ".join(shown(view, 200))


LARGEST = {
    "loss": 6.9078,
    "lr": 0.0001234567,
    "images_per_s": 123_456.0,
    "step_time_s": 1.0,
    "data_wait_s": 1.0,
    "memory_bytes": 1023.9 * 2**30,
    "loss_scale": 2.0**24,
    "skipped_steps": 0,
}
SMALLEST = {**LARGEST, "loss": 0.5, "lr": 0.1, "images_per_s": 9.5, "loss_scale": 1.0}
SMALLEST |= {"data_wait_s": 0.0, "memory_bytes": 2**20}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_and_nothing_jumps(records, width):
    start = Record("start", 0, 0, {**records[0].values, "total_steps": 112_590, "epochs": 90})
    validation = Record("validation", 1251, 0, {"top1": 7.25, "is_best": True})
    views = [
        view_at([start], 0, validation, telemetry, Record("step", step, 0, values), seconds=9e4)
        for step, values, telemetry in (
            (1252, SMALLEST, Record("telemetry", 1, 0, dict.fromkeys(TELEMETRY, 0.0))),
            (112_590, LARGEST, Record("telemetry", 1, 0, TELEMETRY)),
        )
    ]
    few, many = (shown(view, width) for view in views)
    assert max(map(len, few + many)) <= width
    assert len(few) == len(many) <= {60: 7, 80: 5, 120: 4}[width]

    def places(lines):
        words = ("step", "loss", "lr", "images/s", "data wait", "top-1", "best", "power", "busy")
        return [next(n for n, line in enumerate(lines) if word in line) for word in words]

    assert places(few) == places(many), "each figure stays on its line"


def test_the_bar_takes_what_is_left_of_a_narrow_terminal(records):
    view = view_at(records, 6)
    assert [line for line in shown(view, 24) if len(line) > 24] == []
    assert "1.3 s left" in shown(view, 30)[0]


def test_packing_breaks_no_figure():
    assert pack(["aa", "bbb", "c"], 7) == ["aa  bbb", "c"]
    assert pack(["aa", "bbb", "c"], 6, indent=1) == ["aa", " bbb", " c"]
    assert pack(["too long for it", "c"], 6) == ["too long for it", "c"]
    assert pack(["aa   ", "b"], 20) == ["aa     b"]
    assert pack([], 10) == []
