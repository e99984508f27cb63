import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from image_classification.core.types import Record
from image_classification.reporting.console import (
    LiveSink,
    LiveView,
    PlainSink,
    open_console_sink,
    pack,
)

EXPECTED = Path(__file__).parent / "expected"


def plain_console(width=80, **options):
    return Console(file=io.StringIO(), width=width, force_terminal=False, **options)


def terminal(width=100):
    return Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def write_all(sink, records):
    for record in records:
        sink.write(record)
    sink.close()


def test_open_console_sink(make_config):
    assert isinstance(open_console_sink(plain_console(), make_config()), PlainSink)
    assert isinstance(open_console_sink(terminal(), make_config()), LiveSink)


def test_plain_output_has_one_line_per_record(make_config, records):
    console = plain_console()
    write_all(PlainSink(console, make_config()), records)
    lines = text_of(console).splitlines()
    assert lines[:6] == [
        "run     resnet50 AMP convergence DGX1V 90e",
        "device  8 x Tesla V100-SXM2-16GB",
        "data    /imagenet, 8,192 train images, 50,000 validation images",
        "batch   global 2048 = per device 256 x devices 8 x accumulation 1",
        "model   resnet50, 25,557,032 parameters",
        "length  8 steps, 4 per epoch; schedule of 2 epochs",
    ]
    assert len(lines) == 6 + len(records) - 1
    assert lines[6] == (
        "epoch 1/2  step 1/8  loss 6.5000  lr 0.25  8,000 images/s  data wait 25.0 %  "
        "memory 3.0 GiB  loss scale 128"
    )
    assert lines[-3:] == [
        "epoch 2/2  train loss 3.0000  8,000 images/s  1.0 s  data wait 25.0 %",
        "epoch 2/2  validation top-1 50.00 %  top-5 80.00 %  loss 2.0000  "
        "50,000 images in 6.0 s  best so far",
        "epoch 2/2  step 8/8  saved checkpoints/step-8  256.0 MiB  0.5 s  best",
    ]
    assert "\x1b" not in text_of(console)


def test_the_plain_output_of_a_run(make_config, records):
    """All lines that a pipe gets; telemetry is for the live view and the files."""
    console = plain_console(60)
    telemetry = Record("telemetry", 8, 1, {"power_w": 2105.4, "memory_bytes": 9 * 2**30})
    ema = Record(
        "validation_ema", 8, 1, {"top1": 51.5, "top5": 81.0, "loss": 1.9, "is_best": False}
    )
    warning = Record("warning", 8, 1, {"message": "wandb stopped recording: OSError; [x] \x1b"})
    write_all(PlainSink(console, make_config()), [*records, telemetry, ema, warning])
    assert text_of(console) == (EXPECTED / "plain-run.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_on_a_terminal_is_wider_than_it_and_no_figure_is_broken(
    make_config, records, width
):
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=True,
        color_system=None,
        legacy_windows=False,
    )
    sink = LiveSink(console, make_config())
    path = "/runs/" + "long-name-" * 20
    for record in [*records, Record("checkpoint", 8, 1, {"path": path})]:
        sink.write(record)
    sink.close()
    # Each step of the cursor to another line, or back to a line's start, begins a new line.
    rows = re.sub(r"\x1b\[[0-9]*A|\r", "\n", text_of(console))
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", rows).splitlines()
    assert max(map(len, lines)) <= width
    assert f"saved {path}" in "".join(line.rstrip() for line in lines)
    for figure in ("validation top-1 50.00 %", "50,000 images in 6.0 s", "best so far"):
        assert any(figure in line for line in lines)


def test_values_that_were_not_measured_are_dashes(make_config):
    console = plain_console()
    write_all(PlainSink(console, make_config()), [Record("step", 3, 0, {"loss": float("nan")})])
    assert text_of(console) == "epoch 1  step 3  loss nan  lr -  - images/s\n"


def test_skipped_steps_and_warnings_show(make_config):
    console = plain_console()
    records = [
        Record("warning", 0, 0, {"message": "2 GPUs, published with [8]: not comparable"}),
        Record("step", 3, 0, {"loss": 1.0, "lr": 0.1, "images_per_s": 9.0, "skipped_steps": 2}),
    ]
    write_all(PlainSink(console, make_config()), records)
    warning, step = text_of(console).splitlines()
    assert warning == "warning: 2 GPUs, published with [8]: not comparable"
    assert step.endswith("9.0 images/s  skipped 2")


def test_benchmark_records_have_lines(make_config):
    console = plain_console()
    latency = {"latency_ms_mean": 10.0, "latency_ms_p99": 20.0}
    records = [
        Record("start", 0, 0, {"world_size": 1, "device": "cpu", "data": "synthetic"}),
        Record("inference", 0, 0, {"batch": 8, "images_per_s": 800.0, **latency}),
        Record("data", 0, 0, {"images_per_s": 1906.0, "images": 1000, "time_s": 0.5}),
    ]
    write_all(PlainSink(console, make_config()), records)
    assert text_of(console).splitlines()[-2:] == [
        "batch 8  800.0 images/s  latency in ms: mean 10.00, p99 20.00",
        "data  1,906 images/s",
    ]


def test_a_resumed_run_prints_its_first_step(make_config, records):
    console = plain_console()
    start = Record("start", 4, 1, {**records[0].values, "start_step": 4})
    write_all(PlainSink(console, make_config()), [start])
    assert "resumed at step 4" in text_of(console)


def test_the_live_display_keeps_epochs_and_drops_steps(make_config, records):
    console = terminal()
    sink = LiveSink(console, make_config())
    for record in records:
        sink.write(record)
    sink.write(Record("warning", 8, 1, {"message": "disk nearly full"}))
    sink.write(Record("end", 8, 1, {"results": {}}))
    shown = text_of(console)
    assert "train loss 5.0000" in shown
    assert "validation top-1 50.00 %" in shown
    assert "warning: disk nearly full" in shown
    # A step's figures are in the live display only.
    assert "epoch 1/2  step 1/8" not in shown
    sink.close()
    assert text_of(console) == shown, "closing a second time must print nothing"


def test_a_run_without_steps_has_no_progress_bar(make_config):
    console = terminal()
    start = Record("start", 0, 0, {"world_size": 1, "device": "cpu", "data": "synthetic"})
    write_all(LiveSink(console, make_config()), [start])
    assert "epoch" not in text_of(console)


def test_no_color_is_respected(make_config, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    console = terminal()
    write_all(LiveSink(console, make_config()), [Record("warning", 0, 0, {"message": "x"})])
    assert "warning: x" in text_of(console)
    assert "\x1b[33m" not in text_of(console) and "33m" not in text_of(console)


TELEMETRY = {
    "power_w": 2105.4,
    "utilization": 0.974,
    "memory_bytes": 9 * 2**30,
    "temperature_c": 71.0,
}


def shown(view, width):
    console = plain_console(width)
    console.print(view)
    return [line.rstrip() for line in text_of(console).splitlines()]


def view_at(records, step, *others, seconds=4.0):
    """A view that took the records up to ``step``, which all came ``seconds`` after the start."""
    clock = iter([0.0, 10.0])
    view = LiveView(lambda: next(clock, 10.0 + seconds))
    for record in [*(r for r in records if r.step <= step), *others]:
        view.update(record)
    return view


def test_live_view_shows_progress_figures_and_time_left(records):
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


def test_live_view_shows_telemetry(records):
    view = view_at(records, 1, Record("telemetry", 1, 0, {**TELEMETRY, "temperature_c": None}))
    text = " ".join(" ".join(shown(view, 200)).split())
    assert "memory 9.0 GiB power 2,105 W busy 97 %" in text
    assert "°C" not in text


def test_live_view_omits_telemetry_that_was_not_measured(records):
    view = view_at(records, 1, Record("telemetry", 1, 0, dict.fromkeys(TELEMETRY)))
    text = " ".join(shown(view, 200))
    assert not any(word in text for word in ("power", "busy", "°C", "None", "-"))


def test_live_view_before_the_first_step_of_a_resumed_run(records):
    view = LiveView(lambda: 5.0)
    view.update(Record("start", 6, 1, {**records[0].values, "start_step": 6}))
    assert view.eta_s() is None
    first, second = shown(view, 80)
    assert first.startswith("epoch 2/2")
    assert second == "step 6/8  waiting for the first steps"


def test_live_view_shows_last_best_and_ema_top1(records):
    later = Record("validation", 8, 1, {"top1": 29.0, "is_best": False})
    average = Record("validation_ema", 8, 1, {"top1": 55.25, "is_best": True})
    text = " ".join(" ".join(shown(view_at(records, 6, later), 200)).split())
    assert "top-1 29.00 % best 30.00 % (epoch 1)" in text
    text = " ".join(" ".join(shown(view_at(records, 6, later, average), 200)).split())
    assert "top-1 29.00 % EMA top-1 55.25 % best 55.25 % (epoch 2)" in text


def test_live_view_of_a_resumed_run_has_no_best_before_a_new_one(records):
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
def test_live_view_fits_and_each_figure_stays_on_its_line(records, width):
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


def test_the_progress_bar_takes_the_rest_of_a_narrow_terminal(records):
    view = view_at(records, 6)
    assert [line for line in shown(view, 24) if len(line) > 24] == []
    assert "1.3 s left" in shown(view, 30)[0]


def test_pack_keeps_figures_whole():
    assert pack(["aa", "bbb", "c"], 7) == ["aa  bbb", "c"]
    assert pack(["aa", "bbb", "c"], 6, indent=1) == ["aa", " bbb", " c"]
    assert pack(["too long for it", "c"], 6) == ["too long for it", "c"]
    assert pack(["aa   ", "b"], 20) == ["aa     b"]
    assert pack([], 10) == []
