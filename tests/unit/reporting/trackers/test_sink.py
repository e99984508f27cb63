"""Tracker sinks: what trackers receive, and the effect of their failures."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from image_classification.config import schema
from image_classification.core.errors import ConfigError, WorkspaceError
from image_classification.core.types import Record
from image_classification.reporting.sinks import MultiSink
from image_classification.reporting.trackers.sink import (
    TrackerSink,
    check_trackers,
    curve_points,
    open_trackers,
)
from image_classification.reporting.trackers.writers import TRACKERS, TrackedRun, wandb_mode

END = Record("end", 8, 1, {"results": {"validation": {"top1": 50.0, "top5": None}}})
OUTSIDE = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    # So that monkeypatch restores what loading sets.
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


class Kept:
    """A tracker that stores what it receives."""

    def __init__(self) -> None:
        self.started: dict[str, Any] = {}
        self.points: list[tuple[int, dict[str, float]]] = []
        self.finished: bool | None = None
        self.thread = ""

    def start(self, values: Mapping[str, Any]) -> None:
        self.started, self.thread = dict(values), threading.current_thread().name

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.points.append((step, dict(figures)))

    def close(self, *, finished: bool) -> None:
        self.finished = finished


@pytest.fixture
def tracked(tmp_path: Path) -> TrackedRun:
    return TrackedRun("run", tmp_path / "trackers" / "kept", {"optim.lr": 2.0}, resumed=False)


def write_all(sink: TrackerSink, records: Iterable[Record]) -> None:
    for record in records:
        sink.write(record)
    sink.close()


def test_the_schema_and_the_table_have_the_same_trackers():
    assert set(schema.TRACKERS) == set(TRACKERS)


def test_curve_points_of_each_kind_of_record():
    step = {"loss": 5.0, "lr": float("nan"), "total_steps": 8, "memory_bytes": None, "x": "text"}
    assert curve_points(Record("step", 3, 0, step)) == ({"train/loss": 5.0}, 3)
    validation = Record("validation", 4, 0, {"top1": 30.0, "is_best": True})
    assert curve_points(validation) == ({"validation/top1": 30.0}, 4)
    telemetry = Record("telemetry", 4, 0, {"unix_time_s": 1e9, "power_w": 300.0})
    assert curve_points(telemetry) == ({"telemetry/power_w": 300.0}, 4)
    inference = Record("inference", 0, 0, {"batch": 16, "images_per_s": 800.0})
    assert curve_points(inference) == ({"inference/images_per_s": 800.0}, 16)
    assert curve_points(END) == ({"results/validation/top1": 50.0}, 8)
    assert curve_points(Record("warning", 4, 0, {"message": "x"})) == ({}, 4)


def test_records_arrive_in_order_on_another_thread(tracked, records):
    kept, warnings = Kept(), list[str]()
    write_all(TrackerSink("kept", lambda run: kept, tracked, warnings.append), [*records, END])
    assert kept.started["world_size"] == 8
    assert kept.thread == "track-kept"
    steps = [step for step, figures in kept.points if "train/loss" in figures]
    assert steps == list(range(1, 9))
    assert kept.finished
    assert warnings == []


def test_a_stopped_run_is_not_finished(tracked, records):
    kept = Kept()
    write_all(TrackerSink("kept", lambda run: kept, tracked, pytest.fail), records[:3])
    assert kept.finished is False


class Failing(Kept):
    """Fails at its second record."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        super().log(figures, step)
        if len(self.points) == 2:
            raise OSError(28, "No space left on device")


def test_a_failing_tracker_warns_once_and_other_sinks_continue(tracked, records):
    failing, kept = Failing(), Kept()
    others: list[Record] = []

    class Other:
        def write(self, record: Record) -> None:
            others.append(record)

        def close(self) -> None:
            pass

    def warn(message: str) -> None:
        multi.write(Record("warning", 0, 0, {"message": message}))

    sinks = [
        TrackerSink("failing", lambda run: failing, tracked, warn),
        TrackerSink("kept", lambda run: kept, tracked, warn),
    ]
    multi = MultiSink([Other(), *sinks])
    for record in records[:4]:
        multi.write(record)
    sinks[0]._thread.join(30)
    for record in records[4:]:
        multi.write(record)
    multi.close()
    (warning,) = (r for r in others if r.kind == "warning")
    assert warning.values["message"] == (
        "failing stopped recording: OSError: [Errno 28] No space left on device; the run continues"
    )
    assert [r for r in others if r.kind != "warning"] == records
    assert len(failing.points) == 2
    assert len(kept.points) == len(records) - 1


def test_a_failure_on_closing_warns(tracked):
    class Last(Kept):
        def close(self, *, finished: bool) -> None:
            raise ConnectionError("no route to host")

    warnings: list[str] = []
    sink = TrackerSink("last", lambda run: Last(), tracked, warnings.append)
    sink.write(END)
    sink.close()
    sink.close()
    assert warnings == [
        "last stopped recording: ConnectionError: no route to host; the run continues"
    ]


def test_a_hanging_tracker_delays_neither_writing_nor_closing(tracked, records):
    answer = threading.Event()

    class Hanging(Kept):
        def start(self, values: Mapping[str, Any]) -> None:
            answer.wait(60)

    def never_open(run: TrackedRun) -> Kept:
        answer.wait(60)
        return Kept()

    warnings: list[str] = []
    try:
        sink = TrackerSink(
            "slow", lambda run: Hanging(), tracked, warnings.append, timeout_s=0.2, max_waiting=4
        )
        write_all(sink, records)
        assert warnings == [
            "slow stopped recording: 4 records are waiting for it; the run continues"
        ]
        warnings.clear()
        sink = TrackerSink("slow", lambda run: Hanging(), tracked, warnings.append, timeout_s=0.2)
        write_all(sink, records)
        assert warnings == ["slow stopped recording: not done after 0.2 s; the run continues"]
        warnings.clear()
        never = TrackerSink("slow", never_open, tracked, warnings.append, timeout_s=0.2)
        assert never.failure == "not open after 0.2 s"
    finally:
        answer.set()


@pytest.mark.parametrize("name", schema.TRACKERS)
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    for module in list(sys.modules):
        if module.startswith(f"{name}."):
            monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        check_trackers([name])
    assert caught.value.message.startswith(f"--track {name}: {name} is not installed; ")
    assert f"pip install 'imagenet-by-name[{name}]'" in caught.value.message


def test_a_folder_named_wandb_is_not_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    with pytest.raises(ConfigError, match=r"a folder named wandb is imported.*\[wandb\]"):
        check_trackers(["wandb"])


def test_without_trackers_nothing_is_created(tmp_path):
    check_trackers([])
    opened = open_trackers([], workspace=tmp_path, parameters={}, resumed=False, warn=pytest.fail)
    assert opened == []
    assert list(tmp_path.iterdir()) == []


def fake_wandb(
    monkeypatch: pytest.MonkeyPatch, run: FakeRun | None = None, error: Exception | None = None
) -> list[dict[str, Any]]:
    """Replace the module wandb; return the arguments of each call of ``init``."""
    calls: list[dict[str, Any]] = []

    def init(**kwargs: Any) -> FakeRun | None:
        calls.append(kwargs)
        if error is not None:
            raise error
        return run

    module = types.SimpleNamespace(init=init, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


class FakeRun:
    """The methods of wandb's run that the tracker calls."""

    def __init__(self) -> None:
        self.config = self
        self.logged: list[Mapping[str, Any]] = []
        self.exit_code: int | None = None

    def update(self, values: Mapping[str, Any], allow_val_change: bool) -> None:
        self.logged.append(values)

    def define_metric(self, name: str, step_metric: str) -> None:
        pass

    def log(self, values: Mapping[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_wandb_stays_offline_and_continues_its_run(monkeypatch, tmp_path):
    run = FakeRun()
    calls = fake_wandb(monkeypatch, run)
    for resumed in (False, True):
        (sink,) = open_trackers(
            ["wandb"], workspace=tmp_path, parameters={"a.b": 1}, resumed=resumed, warn=pytest.fail
        )
        write_all(sink, [Record("step", 3, 0, {"loss": 1.0})])
    first, second = calls
    assert first["mode"] == "offline"
    assert first["id"] == second["id"]
    assert (first["project"], first["name"]) == ("image-classification", tmp_path.name)
    assert run.logged == [{"step": 3, "train/loss": 1.0}] * 2
    assert run.exit_code == 1, "there was no end record"


def test_a_tracker_that_cannot_be_opened_fails_only_a_new_run(monkeypatch, tmp_path):
    fake_wandb(monkeypatch, error=RuntimeError("server\nunreachable"))
    options: dict[str, Any] = {"workspace": tmp_path, "parameters": {}}
    with pytest.raises(WorkspaceError) as caught:
        open_trackers(["wandb"], resumed=False, warn=pytest.fail, **options)
    assert caught.value.message == (
        "--track wandb: RuntimeError: server unreachable; fix that, or leave wandb out of --track"
    )
    warnings: list[str] = []
    (sink,) = open_trackers(["wandb"], resumed=True, warn=warnings.append, **options)
    write_all(sink, [END, END])
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
    ],
)
def test_wandb_is_online_only_after_a_login(environ, mode, tmp_path):
    assert wandb_mode({"NETRC": str(tmp_path / "none"), **environ}) == mode


def test_wandb_login_is_found_in_the_netrc_file(tmp_path):
    path = tmp_path / "netrc"
    path.write_text("machine api.wandb.ai\n  login user\n  password k\n")
    path.chmod(0o600)
    environ = {"NETRC": str(path)}
    assert wandb_mode(environ) == "online"
    assert wandb_mode({**environ, "WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"
