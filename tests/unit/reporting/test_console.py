import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from image_classification.core.types import Record
from image_classification.reporting.build_report import build_report
from image_classification.reporting.console import LiveSink, PlainSink, open_console_sink
from image_classification.reporting.report import StartResults, TargetResults
from image_classification.reporting.results import print_results, result_rows

EXPECTED = Path(__file__).parent / "expected"


def plain_console(width=80, **options):
    return Console(file=io.StringIO(), width=width, force_terminal=False, **options)


def terminal(width=100):
    return Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False)


def text_of(console):
    return console.file.getvalue()


def write_all(sink, records):
    for record in records:
        sink.write(record)
    sink.close()


@pytest.fixture
def report(make_config, dgx1, results):
    return build_report(
        make_config(),
        devices=dgx1,
        environment={"devices": [{"name": "Tesla V100-SXM2-16GB"}] * 8},
        results=results,
    )


def test_the_sink_follows_the_console(make_config):
    assert isinstance(open_console_sink(plain_console(), make_config()), PlainSink)
    assert isinstance(open_console_sink(terminal(), make_config()), LiveSink)


def test_plain_lines_one_a_record(make_config, records):
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
    """The whole of it, as a pipe gets it; telemetry is for the live view and the files."""
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
    assert f"saved {path}" in "".join(line.rstrip() for line in lines), "whole, to be copied"
    for figure in ("validation top-1 50.00 %", "50,000 images in 6.0 s", "best so far"):
        assert any(figure in line for line in lines)


def test_what_was_not_measured_is_not_shown_as_a_number(make_config):
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


def test_a_resumed_run_says_where_it_goes_on(make_config, records):
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
    # A step's figures stand in the display only, never as a line of the log.
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


def test_the_results_table_has_results_and_verdicts(report, tmp_path):
    console = plain_console(100)
    print_results(console, report, folder=tmp_path, checkpoint="checkpoints/best")
    shown = text_of(console)
    for expected in (
        "resnet50 AMP convergence DGX1V 90e",
        "8 x Tesla V100-SXM2-16GB",
        "top-1 76.80 %, top-5 93.20 %, loss 0.9800, 50,000 images",
        "8,300 images/s, 1,038 per device, data wait 2.0 %",
        "total 4 h 02 min",
        "checkpoints/best",
        "76.88 %",
        "8,322 images/s",
        "nvidia-resnet50-dgx1v-amp-90e, top-1: -0.08 points",
    ):
        assert expected in shown
    assert shown.count("reproduced") == 2
    assert "validation, EMA" not in shown


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_results_table_keeps_to_the_width(report, tmp_path, width):
    console = plain_console(width)
    print_results(console, report, folder=tmp_path)
    assert max(map(len, text_of(console).splitlines())) <= width


def test_the_table_of_an_inference_run(make_config, dgx1):
    row = {"batch": 8, "images_per_s": 800.0, "latency_ms": {"mean": 10.0, "p99": 20.0}}
    results = {"inference": [row]}
    report = build_report(
        make_config(platform={"device": "cpu", "num_devices": 1}),
        devices=dgx1,
        environment={},
        results=results,
        exit_code=75,
        exit_message="SIGTERM",
    )
    console = plain_console(100)
    print_results(console, report, folder="runs/x")
    shown = text_of(console)
    assert "Inference, latency in ms" in shown
    assert "20.00" in shown
    assert "stopped: SIGTERM" in shown
    assert report.environment.cpu in shown
    assert "training" not in shown.split("Against")[0]


def test_the_table_has_the_target_and_the_worlds(report):
    def rows(**results):
        return dict(result_rows(replace(report, results=replace(report.results, **results))))

    def starts(*sizes):
        starts = (StartResults(step=0, world_size=size, changes=()) for size in sizes)
        return rows(starts=tuple(starts))

    assert "target" not in rows()
    assert "processes" not in starts(8, 8)
    target = TargetResults(stop_at_top1=75.9)
    assert rows(target=target)["target"] == "top-1 75.90 % not reached"
    target = TargetResults(stop_at_top1=75.9, top1=76.0, epoch=3, step=1200, time_s=61.0)
    assert rows(target=target)["target"] == (
        "top-1 75.90 % reached (76.00 %) after epoch 3, step 1,200, in 1 min 01 s"
    )
    assert starts(8, 4)["processes"] == "8 -> 4"
