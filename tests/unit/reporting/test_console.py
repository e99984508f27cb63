import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from image_classification.core.types import Activity, Record
from image_classification.reporting.console import (
    LiveSink,
    PlainSink,
    open_console_sink,
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
    assert isinstance(open_console_sink(plain_console(), make_config(), Activity()), PlainSink)
    assert isinstance(open_console_sink(terminal(), make_config(), Activity()), LiveSink)


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
    sink = LiveSink(console, make_config(), Activity())
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
    sink = LiveSink(console, make_config(), Activity())
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
    shown = text_of(console)
    sink.close()
    assert text_of(console) == shown, "closing a second time must print nothing"


def test_the_live_view_stays_until_it_is_closed(make_config, records):
    console = terminal()
    sink = LiveSink(console, make_config(), activity := Activity())
    assert "starting, 0 s" in text_of(console), "before the first record"
    for record in [*records, Record("end", 8, 1, {"results": {}})]:
        sink.write(record)
    activity.begin("writing the report")
    sink.write(Record("warning", 8, 1, {"message": "x"}))
    assert "writing the report, 0 s" in text_of(console)
    sink.close()
    erased = text_of(console).rpartition("elapsed")[2]
    assert "\x1b[2K" in erased, "the display is removed"
    assert "\x1b[?25h" in erased, "the cursor is visible again"


def test_the_live_view_is_redrawn_every_second(make_config, records, monkeypatch):
    """Without any record: the thread of the display alone."""
    monkeypatch.setattr("image_classification.reporting.console.REFRESHES_PER_S", 100)
    console = terminal()
    activity = Activity()
    sink = LiveSink(console, make_config(), activity)
    sink.write(records[0])
    activity.begin("training", trains=True)
    activity.step = 3
    deadline_s = time.monotonic() + 5
    while "step 3/8" not in text_of(console) and time.monotonic() < deadline_s:
        time.sleep(0.005)
    sink.close()
    assert "step 3/8" in text_of(console)


def test_the_live_view_is_not_redrawn_while_latencies_are_timed(make_config, monkeypatch):
    monkeypatch.setattr("image_classification.reporting.console.REFRESHES_PER_S", 200)
    console = terminal()
    sink = LiveSink(console, make_config(), activity := Activity())
    activity.quiet = True
    time.sleep(0.02)
    before = text_of(console)
    time.sleep(0.05)
    assert text_of(console) == before
    sink.close()


def test_no_color_is_respected(make_config, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    console = terminal()
    write_all(
        LiveSink(console, make_config(), Activity()), [Record("warning", 0, 0, {"message": "x"})]
    )
    assert "warning: x" in text_of(console)
    assert "\x1b[33m" not in text_of(console) and "33m" not in text_of(console)


def test_an_evaluation_on_a_cpu_has_no_epoch_and_names_the_cores(make_config):
    console = plain_console()
    config = make_config(platform={"device": "cpu", "num_devices": 1})
    validation = Record("validation", 0, 0, {"top1": 50.0, "loss": 2.0})
    start = Record("start", 0, 0, {"world_size": 1, "device": "AMD EPYC", "data": "demo"})
    write_all(PlainSink(console, config), [start, validation])
    lines = text_of(console).splitlines()
    assert re.fullmatch(r"device  \d+ CPU cores? \(AMD EPYC\)", lines[1])
    assert lines[-1] == "validation top-1 50.00 %  loss 2.0000"
