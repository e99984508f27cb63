import json
import math
import statistics
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from image_classification.core.errors import WorkspaceError
from image_classification.core.types import Record
from image_classification.reporting.sinks import DLLoggerSink, JsonlSink, MultiSink, read_metrics


class ListSink:
    def __init__(self, fail_on_close=False):
        self.records = []
        self.closed = False
        self.fail_on_close = fail_on_close

    def write(self, record):
        self.records.append(record)

    def close(self):
        self.closed = True
        if self.fail_on_close:
            raise WorkspaceError("disk full")


def write_all(sink, records):
    for record in records:
        sink.write(record)
    sink.close()


def test_multi_sink_writes_to_all_and_closes_all_even_after_a_failure(records):
    first, second = ListSink(), ListSink(fail_on_close=True)
    sink = MultiSink([first, second])
    with pytest.raises(WorkspaceError, match="disk full"):
        write_all(sink, records)
    assert first.records == second.records == records
    assert first.closed and second.closed


def test_jsonl_lines_have_every_key_and_are_written_at_once(tmp_path, records):
    seconds = iter([100.0, 100.5, 102.0])
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path, monotonic_s=lambda: next(seconds))
    sink.write(records[0])
    assert len(path.read_text().splitlines()) == 1
    sink.write(records[1])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    sink.close()
    sink.close()
    assert [line["time_s"] for line in lines] == [0.5, 2.0]
    assert lines[1].keys() == {"kind", "step", "epoch", "time_s", "timestamp", "values"}
    assert (lines[1]["kind"], lines[1]["step"], lines[1]["epoch"]) == ("step", 1, 0)
    assert lines[1]["values"] == records[1].values
    assert datetime.fromisoformat(lines[1]["timestamp"]).utcoffset() == timedelta(0)


def test_jsonl_writes_nan_as_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_all(JsonlSink(path), [Record("step", 1, 0, {"loss": math.nan, "top": [math.inf]})])
    assert json.loads(path.read_text())["values"] == {"loss": None, "top": [None]}


def test_read_metrics_returns_what_was_written(tmp_path, records):
    path = tmp_path / "metrics.jsonl"
    write_all(JsonlSink(path), records)
    assert read_metrics(path) == records


def test_a_resumed_run_appends_and_its_repeated_steps_count_once(tmp_path, records):
    path = tmp_path / "metrics.jsonl"
    killed = [record for record in records if record.step <= 6]
    write_all(JsonlSink(path), killed)
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    resumed_at_4 = Record("start", 4, 1, {**records[0].values, "start_step": 4})
    repeated = [record for record in records if record.step > 4]
    write_all(JsonlSink(path, append=True), [resumed_at_4, *repeated])
    before = [record for record in records if record.step <= 4]
    assert read_metrics(path) == [*before, resumed_at_4, *repeated]


def test_a_new_run_replaces_the_file(tmp_path, records):
    path = tmp_path / "metrics.jsonl"
    write_all(JsonlSink(path), records)
    write_all(JsonlSink(path), records[:1])
    assert read_metrics(path) == records[:1]


def test_an_incomplete_last_line_is_left_out(tmp_path, records):
    path = tmp_path / "metrics.jsonl"
    write_all(JsonlSink(path), records)
    path.write_text(path.read_text()[:-5])
    assert read_metrics(path) == records[:-1]


def test_file_errors_name_the_file_and_the_remedy(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(WorkspaceError, match=r"cannot read .*metrics\.jsonl: No such file"):
        read_metrics(path)
    path.write_text('{"kind": "step"}\n')
    with pytest.raises(WorkspaceError, match=r"metrics\.jsonl:1 is not a record"):
        read_metrics(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(WorkspaceError, match=r"cannot write .*give another --workspace"):
        JsonlSink(path)


def test_a_full_disk_is_an_error_of_one_line(records):
    # This device accepts the open and refuses every write.
    sink = JsonlSink(Path("/dev/full"))
    with pytest.raises(WorkspaceError, match=r"cannot write /dev/full: no space left") as caught:
        sink.write(records[0])
    assert "\n" not in caught.value.message
    sink.close()


START = datetime(2026, 1, 2, 3, 4, 5, 500_000)


def dllogger_lines(path):
    """Read as scripts for NVIDIA's logs do: a prefix of five characters, then JSON."""
    lines = path.read_text().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    return [json.loads(line[5:], parse_constant=pytest.fail) for line in lines]


def write_dllogger(path, records, append=False):
    ticks = iter(range(1000))
    sink = DLLoggerSink(
        path,
        parameters={"optim.lr": 2.048, "data.mean": (0.5, 0.5)},
        append=append,
        now=lambda: START + timedelta(seconds=next(ticks)),
    )
    write_all(sink, records)
    return dllogger_lines(path)


def logged(lines, step):
    return [line["data"] for line in lines if line["type"] == "LOG" and line["step"] == step]


def test_dllogger_times_are_strings(tmp_path, records):
    lines = write_dllogger(tmp_path / "raport.json", records)
    assert lines[0]["timestamp"] == str((START + timedelta(seconds=1)).timestamp())
    assert lines[0]["datetime"] == "2026-01-02 03:04:06.500000"
    assert lines[0]["elapsedtime"] == "1.0"


def test_dllogger_metadata_comes_first_with_units(tmp_path, records):
    lines = write_dllogger(tmp_path / "raport.json", records)
    metadata = {line["metric"]: line["metadata"] for line in lines if line["type"] == "METADATA"}
    assert metadata["train.total_ips"] == {"unit": "img/s", "format": ":.2f"}
    assert metadata["val.top1"] == {"unit": "%", "format": ":.2f"}
    assert metadata["val.compute_latency"]["unit"] == "s"
    assert metadata["train.lr"] == {}
    assert {line["type"] for line in lines[: len(metadata)]} == {"METADATA"}


def test_dllogger_iteration(tmp_path, records):
    (step,) = logged(write_dllogger(tmp_path / "raport.json", records), [1, 2])
    assert step == {
        "train.loss": 4.0,
        # 8,000 images/s x 0.256 s a step, over the 0.192 s not spent waiting for data.
        "train.compute_ips": pytest.approx(8000 * 0.256 / 0.192),
        "train.total_ips": 8000.0,
        "train.data_time": 0.064,
        "train.compute_time": pytest.approx(0.192),
        "train.lr": 1.5,
    }


def test_dllogger_epoch_has_training_and_validation(tmp_path, records):
    train, validation = logged(write_dllogger(tmp_path / "raport.json", records), [1])
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


def test_dllogger_declares_ema_once_with_its_first_validation(tmp_path):
    ema = [Record("validation_ema", 4, epoch, {"top1": 70.0}) for epoch in (0, 1)]
    lines = write_dllogger(tmp_path / "raport.json", ema)
    declared = [line for line in lines if line.get("metric") == "val_ema.top1"]
    assert len(declared) == 1
    assert logged(lines, [1]) == [{"val_ema.top1": 70.0}]


def test_dllogger_inference_latencies_are_in_seconds(tmp_path):
    values = {
        "batch": 8,
        "images_per_s": 800.0,
        "latency_ms_mean": 10.0,
        "latency_ms_p50": 9.0,
        "latency_ms_p95": 14.0,
        "latency_ms_p99": 20.0,
    }
    lines = write_dllogger(tmp_path / "raport.json", [Record("inference", 0, 0, values)])
    assert logged(lines, ["Inference batch", 8]) == [
        {
            "val.total_ips": 800.0,
            "val.compute_latency": 0.01,
            "val.compute_latency_at95": 0.014,
            "val.compute_latency_at99": 0.02,
        }
    ]


def test_dllogger_omits_warnings_and_checkpoints(tmp_path):
    others = [Record("warning", 0, 0, {"message": "x"}), Record("checkpoint", 4, 0, {"path": "p"})]
    assert {line["type"] for line in write_dllogger(tmp_path / "raport.json", others)} == {
        "METADATA"
    }


def test_dllogger_appends_without_declaring_again(tmp_path, records):
    path = tmp_path / "raport.json"
    before = len(write_dllogger(path, records[:3]))
    after = write_dllogger(path, records[3:5], append=True)
    assert len(after) == before + 2


@pytest.fixture
def raport(tmp_path, records, results):
    """The lines of two epochs, killed after step 6 and resumed from step 4."""
    path = tmp_path / "raport.json"
    resumed = Record("start", 4, 1, {**records[0].values, "start_step": 4})
    end = Record("end", 8, 1, {"results": results})
    write_dllogger(path, [record for record in records if record.step <= 6])
    later = [record for record in records if record.step > 4]
    return write_dllogger(path, [resumed, *later, end], append=True)


def test_every_dllogger_line_has_the_keys_of_its_type(raport):
    common = {"timestamp", "datetime", "elapsedtime", "type"}
    for line in raport:
        own = {"LOG": {"step", "data"}, "METADATA": {"metric", "metadata"}}[line["type"]]
        assert set(line) == common | own
        at = datetime.strptime(line["datetime"], "%Y-%m-%d %H:%M:%S.%f")
        assert float(line["timestamp"]) == at.timestamp()
        assert float(line["elapsedtime"]) >= 0


def test_the_last_dllogger_line_has_what_the_run_measured(raport):
    assert raport[-1]["step"] == []
    assert raport[-1]["data"] == {
        "train.total_ips": 8300.0,
        "val.top1": 76.8,
        "val.top5": 93.2,
        "val.loss": 0.98,
    }


def test_dllogger_figures_are_floats_with_declared_units(raport):
    rows = [line for line in raport if line["type"] == "LOG"]
    table = [row["data"] for row in rows if row["step"] != "PARAMETER"]
    assert all(isinstance(value, float) for row in table for value in row.values())
    rates = [row["train.total_ips"] for row in table[:-1] if "train.total_ips" in row]
    assert statistics.mean(rates) == 8000.0
    names = {name for row in table for name in row}
    declared = {line["metric"] for line in raport if line["type"] == "METADATA"}
    assert names <= declared
    assert {"train.total_ips", "train.compute_ips", "val.top1", "val.top5", "val.loss"} <= names


def test_dllogger_parameters_have_the_configuration_and_the_start_record(raport):
    first, resumed = (line["data"] for line in raport if line.get("step") == "PARAMETER")
    assert first["optim.lr"] == 2.048 and first["data.mean"] == [0.5, 0.5]
    assert first["num_parameters"] == 25_557_032
    assert (first["start_step"], resumed["start_step"]) == (0, 4)


def test_dllogger_steps_of_epochs_have_one_number_and_of_iterations_two(raport):
    logs = [line for line in raport if isinstance(line.get("step"), list)]
    top1 = {
        line["step"][0]: line["data"]["val.top1"]
        for line in logs
        if len(line["step"]) == 1 and "val.top1" in line["data"]
    }
    assert top1 == {0: 30.0, 1: 50.0}
    # The later of two lines for one iteration counts: a table keyed by the step has each once.
    loss = {
        tuple(line["step"]): line["data"]["train.loss"] for line in logs if len(line["step"]) == 2
    }
    assert list(loss) == [(epoch, i) for epoch in (0, 1) for i in (1, 2, 3, 4)]
    assert loss[1, 4] == 3.0
