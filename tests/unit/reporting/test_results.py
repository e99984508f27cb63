"""The tables at the end of a run."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from image_classification.config.resolve import resolve
from image_classification.core.types import DevicesFound
from image_classification.reporting.build_report import build_report
from image_classification.reporting.published.verdict import newest
from image_classification.reporting.report import (
    Exit,
    StartResults,
    TargetResults,
    Top1AtStep,
)
from image_classification.reporting.results import print_results, result_rows
from tests.support.runs import evaluation_details

ROOT = Path(__file__).parents[3]
V100 = DevicesFound("cuda", ("Tesla V100-SXM2-16GB",))


def printed(report, width, **options):
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=False)
    print_results(console, report, folder=Path("runs/x"), **options)
    return output.getvalue()


def inference_config(**overrides):
    given = {"platform.num_devices": 1, **overrides}
    return resolve("resnet50", "AMP", "benchmark_inference", "DGX1V", overrides=given)


def passes(batch, rate, mean, p99):
    latency = {"mean": mean, "p50": mean, "p90": mean, "p95": mean, "p99": p99}
    return {"batch": batch, "images_per_s": rate, "latency_ms": latency}


@pytest.fixture
def report(make_config, dgx1, results):
    return build_report(
        make_config(),
        devices=dgx1,
        environment={"devices": [{"name": "Tesla V100-SXM2-16GB"}] * 8},
        results=results,
    )


def test_the_results_table_has_results_and_verdicts(report):
    shown = printed(report, 100, checkpoint="checkpoints/best")
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
def test_the_results_table_fits_the_width(report, width):
    text = printed(report, width)
    tables = text.rpartition("\n\n")[0]
    assert max(map(len, tables.splitlines())) <= width


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
    shown = printed(report, 100)
    assert "Inference, latency in ms" in shown
    assert "20.00" in shown
    assert "stopped: SIGTERM" in shown
    assert report.devices_text in shown and "run on " in shown
    assert "training" not in shown.split("Against")[0]


def test_result_rows_have_the_target_and_the_numbers_of_processes(report):
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


def test_result_rows_have_the_mistakes_and_the_lowest_classes(make_config, dgx1):
    for count, expected in (
        (
            4,
            "8 of 40 images; lowest top-1: class & 0 (80.0 %), class & 1 (80.0 %), "
            "class & 2 (80.0 %)",
        ),
        (2, "4 of 20 images"),
    ):
        results = {"evaluation": evaluation_details(count).summary()}
        report = build_report(make_config(), devices=dgx1, environment={}, results=results)
        assert dict(result_rows(report))["mistakes"] == expected


def test_the_newest_publications_are_printed_and_the_others_counted(report):
    text = printed(report, 160)
    rest = len(report.published) - len(newest(report.published))
    assert rest > 3
    assert f"{rest} more figures of other publications in report.json" in text
    assert "nvidia-resnet50-dgx1v-amp-90e, top-1: -0.08 points" in text
    assert "nvidia-pyt1910" not in text


def last_lines(text):
    """Return label and text of the lines after the tables."""
    return dict(line.split(maxsplit=1) for line in text.rpartition("\n\n")[2].splitlines())


@pytest.fixture
def as_launch(monkeypatch):
    """Set how the program was started."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))

    def start(*arguments):
        monkeypatch.setattr("sys.argv", ["launch.py", *arguments])

    start("--model", "resnet50")
    return start


def test_the_last_lines_name_the_page_and_commands_whole(report, as_launch):
    lines = last_lines(printed(report, 60, checkpoint="checkpoints/step-1"))
    assert lines["report"] == "runs/x/report.html"
    assert lines["evaluate"] == "python launch.py --from runs/x --mode evaluate"
    # All 90 epochs of the schedule are done.
    more = "--epochs 180 --allow-changes"
    assert lines["continue"] == f"python launch.py --from runs/x {more}"
    part = replace(report.results, train=replace(report.results.train, epochs=30.0))
    stopped_early = replace(report, results=part)
    lines = last_lines(printed(stopped_early, 60, checkpoint="checkpoints/step-1"))
    assert lines["continue"] == "python launch.py --from runs/x --epochs 90"
    # Continued without a step left to train, it has no figures of training.
    untrained = replace(report.results.train, epochs=None)
    last = Top1AtStep(top1=76.8, epoch=90, step=56_250)
    complete = replace(report, results=replace(report.results, train=untrained, last=last))
    lines = last_lines(printed(complete, 60, checkpoint="checkpoints/step-1"))
    assert lines["continue"] == f"python launch.py --from runs/x {more}"
    report.config["run"]["stop_at_top1"] = 75.9
    lines = last_lines(printed(report, 60, checkpoint="checkpoints/step-1"))
    assert "continue" not in lines and "evaluate" in lines
    # Without a checkpoint there is nothing to evaluate.
    lines = last_lines(printed(report, 60))
    assert list(lines) == ["report", "compare", "table"]
    assert lines["compare"] == "python -m image_classification report history runs"


def test_the_last_lines_begin_with_the_best_and_the_last_accuracy(report, as_launch):
    best, last = (
        Top1AtStep(top1=77.0, epoch=88, step=55_000),
        Top1AtStep(top1=76.8, epoch=90, step=1),
    )
    validated = replace(report, results=replace(report.results, best=best, last=last))
    text = printed(validated, 80)
    lines = last_lines(text)
    assert list(lines)[:3] == ["best", "last", "report"]
    assert lines["best"] == "top-1 77.00 % (epoch 88, step 55,000)"
    assert text.count("77.00 %") == 1


def test_steps_of_a_resumed_run_are_counted_from_there(report):
    start = StartResults(step=625, world_size=8, resumed_from="x", changes=())
    train = replace(report.results.train, steps=2, epochs=30.05)
    results = replace(report.results, train=train, starts=(start,))
    rows = dict(result_rows(replace(report, results=results)))
    assert rows["trained"] == "2 steps since step 625, 30.05 of 90 epochs in all"


def test_after_a_stop_the_same_command_continues(report, as_launch):
    stopped = replace(report, exit=Exit(status="stopped", code=75, message="SIGTERM"))

    def command(*arguments):
        as_launch(*arguments)
        lines = last_lines(printed(stopped, 60, checkpoint="checkpoints/step-1"))
        assert set(lines) == {"report", "continue"}
        return lines["continue"]

    resume = "--resume auto"
    assert command("--from", "runs/x") == "python launch.py --from runs/x"
    assert command("--epochs", "3") == f"python launch.py --epochs 3 --workspace runs/x {resume}"
    assert command("--workspace=y") == f"python launch.py --workspace=y {resume}"
    assert (
        command("--workspace", "y", "--resume", "auto")
        == f"python launch.py --workspace y {resume}"
    )


def test_after_an_error_no_command_is_suggested(report, as_launch):
    failed = replace(report, exit=Exit(status="diverged", code=3, message="loss is nan"))
    assert list(last_lines(printed(failed, 80, checkpoint="checkpoints/step-1"))) == ["report"]


def test_published_figures_that_the_mode_does_not_measure_are_left_out(make_config, dgx1, results):
    config = make_config(run={"mode": "benchmark_training"})
    config = replace(config, names=replace(config.names, mode="benchmark_training"))
    report = build_report(config, devices=dgx1, environment={}, results=results)
    table = printed(report, 100).partition("Against the published figures")[2]
    assert "training speed" in table and "top-1" not in table


def test_the_inference_verdicts_fit_eighty_columns():
    measured = {"inference": [passes(128, 1234.5, 2517.67, 2725.39)]}
    config = inference_config(**{"run.inference_batches": (128,)})
    report = build_report(config, devices=V100, environment={}, results=measured)
    text = printed(report, 80)
    table = text[text.index("Against the published figures") :]
    assert "…" not in table
    assert "latency mean at 128" in table


def test_one_reason_for_all_figures_of_inference_is_printed_once():
    measured = {"inference": [passes(64, 2990.0, 23.0, 21.0), passes(128, 3000.0, 50.0, 41.0)]}
    config = inference_config(**{"platform.num_devices": 8, "run.inference_batches": (64, 128)})
    report = build_report(config, devices=V100, environment={}, results=measured)
    text = printed(report, 160)
    assert text.count("8 devices, published with 1") == 1
    assert "latency p99 at 128" in text
