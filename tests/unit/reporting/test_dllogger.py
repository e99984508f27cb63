import json
from datetime import datetime, timedelta

import pytest

from image_classification.core.types import Record
from image_classification.reporting.sinks import DLLoggerSink

START = datetime(2026, 1, 2, 3, 4, 5)


def read(path):
    lines = path.read_text().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    return [json.loads(line.removeprefix("DLLL ")) for line in lines]


def write(path, records, append=False):
    ticks = iter(range(1000))
    sink = DLLoggerSink(
        path,
        parameters={"optim.lr": 2.048},
        append=append,
        now=lambda: START + timedelta(seconds=next(ticks)),
    )
    for record in records:
        sink.write(record)
    sink.close()
    return read(path)


def logged(lines, step):
    return [line["data"] for line in lines if line["type"] == "LOG" and line["step"] == step]


def test_times_are_strings_as_the_format_has_them(tmp_path, records):
    lines = write(tmp_path / "raport.json", records)
    assert lines[0]["timestamp"] == str((START + timedelta(seconds=1)).timestamp())
    assert lines[0]["datetime"] == "2026-01-02 03:04:06"
    assert lines[0]["elapsedtime"] == "1.0"


def test_metadata_comes_first_with_units(tmp_path, records):
    lines = write(tmp_path / "raport.json", records)
    metadata = {line["metric"]: line["metadata"] for line in lines if line["type"] == "METADATA"}
    assert metadata["train.total_ips"] == {"unit": "img/s", "format": ":.2f"}
    assert metadata["val.top1"] == {"unit": "%", "format": ":.2f"}
    assert metadata["val.compute_latency"]["unit"] == "s"
    assert metadata["train.lr"] == {}
    assert {line["type"] for line in lines[: len(metadata)]} == {"METADATA"}


def test_parameters_hold_the_configuration_and_the_sizes(tmp_path, records):
    (parameters,) = logged(write(tmp_path / "raport.json", records), "PARAMETER")
    assert parameters["optim.lr"] == 2.048
    assert parameters["num_parameters"] == 25_557_032


def test_an_iteration_has_the_published_names(tmp_path, records):
    (step,) = logged(write(tmp_path / "raport.json", records), [1, 2])
    assert step == {
        "train.loss": 4.0,
        # 8,000 images/s x 0.256 s a step, over the 0.192 s not spent waiting for data.
        "train.compute_ips": pytest.approx(8000 * 0.256 / 0.192),
        "train.total_ips": 8000.0,
        "train.data_time": 0.064,
        "train.compute_time": pytest.approx(0.192),
        "train.lr": 1.5,
    }


def test_an_epoch_has_training_and_validation(tmp_path, records):
    train, validation = logged(write(tmp_path / "raport.json", records), [1])
    assert train["train.total_ips"] == 8000.0
    assert train["train.compute_ips"] == 10666.7
    assert train["train.data_time"] == pytest.approx(0.256 / 4)
    assert train["train.compute_time"] == pytest.approx((1.024 - 0.256) / 4)
    assert validation == {
        "val.top1": 50.0,
        "val.top5": 80.0,
        "val.loss": 2.0,
        "val.compute_ips": 9000.0,
        "val.total_ips": 8333.3,
    }


def test_the_average_is_declared_once_when_it_first_appears(tmp_path):
    ema = [Record("validation_ema", 4, epoch, {"top1": 70.0}) for epoch in (0, 1)]
    lines = write(tmp_path / "raport.json", ema)
    declared = [line for line in lines if line.get("metric") == "val_ema.top1"]
    assert len(declared) == 1
    assert logged(lines, [1]) == [{"val_ema.top1": 70.0}]


def test_inference_latencies_are_seconds(tmp_path):
    values = {
        "batch": 8,
        "images_per_s": 800.0,
        "latency_ms_mean": 10.0,
        "latency_ms_p50": 9.0,
        "latency_ms_p95": 14.0,
        "latency_ms_p99": 20.0,
    }
    lines = write(tmp_path / "raport.json", [Record("inference", 0, 0, values)])
    assert logged(lines, ["Inference batch", 8]) == [
        {
            "val.total_ips": 800.0,
            "val.compute_latency": 0.01,
            "val.compute_latency_at95": 0.014,
            "val.compute_latency_at99": 0.02,
        }
    ]


def test_the_summary_has_an_empty_step_and_only_what_was_measured(tmp_path, results):
    end = Record("end", 8, 1, {"results": results})
    lines = write(tmp_path / "raport.json", [end])
    assert logged(lines, []) == [
        {"train.total_ips": 8300.0, "val.top1": 76.8, "val.top5": 93.2, "val.loss": 0.98}
    ]


def test_kinds_without_published_names_write_nothing(tmp_path):
    others = [Record("warning", 0, 0, {"message": "x"}), Record("checkpoint", 4, 0, {"path": "p"})]
    assert {line["type"] for line in write(tmp_path / "raport.json", others)} == {"METADATA"}


def test_resuming_appends_without_declaring_again(tmp_path, records):
    path = tmp_path / "raport.json"
    before = len(write(path, records[:3]))
    after = write(path, records[3:5], append=True)
    assert len(after) == before + 2
