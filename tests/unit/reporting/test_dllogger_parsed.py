"""The raport file as scripts written for NVIDIA's logs read it.

Three ways are common: the last line holds a run's figures; all ``LOG`` lines make a table whose
columns are averaged; lines with one number as their step are the epochs.
"""

import json
import statistics
from datetime import datetime, timedelta

import pytest

from image_classification.core.types import Record
from image_classification.reporting.sinks import DLLoggerSink

START = datetime(2026, 1, 2, 3, 4, 5, 500_000)


@pytest.fixture
def raport(tmp_path, records, results):
    """Two epochs, killed after step 6 and resumed from step 4, and their end."""
    path = tmp_path / "raport.json"
    ticks = iter(range(1000))
    again = Record("start", 4, 1, {**records[0].values, "start_step": 4})
    end = Record("end", 8, 1, {"results": results})
    parts = (
        [record for record in records if record.step <= 6],
        [again, *(record for record in records if record.step > 4), end],
    )
    for resumed, part in enumerate(parts):
        sink = DLLoggerSink(
            path,
            parameters={"batch.per_device": 256, "data.mean": (0.5, 0.5)},
            append=bool(resumed),
            now=lambda: START + timedelta(seconds=next(ticks)),
        )
        for record in part:
            sink.write(record)
        sink.close()
    return path


def lines_of(path):
    """Read as such scripts do: a prefix of five characters, then JSON, on every line."""
    return [json.loads(line[len("DLLL ") :]) for line in path.read_text().splitlines()]


def test_every_line_has_the_fields_its_type_has(raport):
    common = {"timestamp", "datetime", "elapsedtime", "type"}
    for line in lines_of(raport):
        own = {"LOG": {"step", "data"}, "METADATA": {"metric", "metadata"}}[line["type"]]
        assert set(line) == common | own
        at = datetime.strptime(line["datetime"], "%Y-%m-%d %H:%M:%S.%f")
        assert float(line["timestamp"]) == at.timestamp()
        assert float(line["elapsedtime"]) >= 0


def test_no_number_is_one_only_python_reads(raport):
    def refuse(name):
        raise AssertionError(name)

    for line in raport.read_text().splitlines():
        json.loads(line.replace("DLLL ", ""), parse_constant=refuse)


def test_the_last_line_has_the_figures_of_the_run(raport):
    last = json.loads(raport.read_text().splitlines()[-1].removeprefix("DLLL "))
    assert last["step"] == []
    assert last["data"] == {
        "train.total_ips": 8300.0,
        "val.top1": 76.8,
        "val.top5": 93.2,
        "val.loss": 0.98,
    }


def test_the_log_lines_make_a_table_of_numbers(raport):
    rows = [line for line in lines_of(raport) if line["type"] == "LOG"]
    table = [row["data"] for row in rows if row["step"] != "PARAMETER"]
    assert all(isinstance(value, float) for row in table for value in row.values())
    rates = [row["train.total_ips"] for row in table[:-1] if "train.total_ips" in row]
    assert statistics.mean(rates) == 8000.0
    names = {name for row in table for name in row}
    declared = {line["metric"] for line in lines_of(raport) if line["type"] == "METADATA"}
    assert names <= declared, "each number's unit is in the file"
    assert {"train.total_ips", "train.compute_ips", "val.top1", "val.top5", "val.loss"} <= names


def test_the_parameters_are_found_by_their_step(raport):
    first, again = (line["data"] for line in lines_of(raport) if line.get("step") == "PARAMETER")
    assert first["batch.per_device"] == 256
    assert (first["start_step"], again["start_step"]) == (0, 4)


def test_epochs_and_iterations_are_told_apart_by_the_length_of_their_step(raport):
    logs = [line for line in lines_of(raport) if isinstance(line.get("step"), list)]
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
