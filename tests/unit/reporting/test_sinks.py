import json
import math
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from image_classification.core.errors import WorkspaceError
from image_classification.core.types import Record
from image_classification.reporting.sinks import JsonlSink, MultiSink, read_metrics


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
    for record in records:
        sink.write(record)
    with pytest.raises(WorkspaceError, match="disk full"):
        sink.close()
    assert first.records == second.records == records
    assert first.closed and second.closed


def test_jsonl_lines_have_every_key_and_are_there_at_once(tmp_path, records):
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


def test_read_metrics_gives_the_records_back(tmp_path, records):
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
    again = [record for record in records if record.step > 4]
    write_all(JsonlSink(path, append=True), [resumed_at_4, *again])
    kept = [record for record in records if record.step <= 4]
    assert read_metrics(path) == [*kept, resumed_at_4, *again]


def test_a_new_run_replaces_the_file(tmp_path, records):
    path = tmp_path / "metrics.jsonl"
    write_all(JsonlSink(path), records)
    write_all(JsonlSink(path), records[:1])
    assert read_metrics(path) == records[:1]


def test_a_torn_last_line_is_left_out(tmp_path, records):
    path = tmp_path / "metrics.jsonl"
    write_all(JsonlSink(path), records)
    path.write_text(path.read_text()[:-5])
    assert read_metrics(path) == records[:-1]


def test_errors_name_the_file_and_the_remedy(tmp_path):
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


def test_a_full_disk_is_one_clear_line(records):
    # This device accepts the open and refuses every write.
    sink = JsonlSink(Path("/dev/full"))
    with pytest.raises(WorkspaceError, match=r"cannot write /dev/full: no space left") as caught:
        sink.write(records[0])
    assert "\n" not in caught.value.message
    sink.close()
