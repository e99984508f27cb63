"""The trackers with their real packages, read back with the packages' own readers.

``make test-trackers`` runs them in an environment that has every tracker.
"""

import os
import struct
import time
from importlib.util import find_spec

import pytest

from image_classification.core.types import Record
from image_classification.reporting.trackers.sink import check_trackers, open_trackers

END = Record("end", 8, 1, {"results": {"validation": {"top1": 50.0}}})
PARAMETERS = {"optim.lr": 2.048, "run.resume": None, "data.mean": (0.5, 0.25)}


def needs(name):
    spec = find_spec(name)
    missing = (spec is None or spec.origin is None) and not os.environ.get("REQUIRE_TRACKERS")
    return pytest.mark.skipif(missing, reason=f"{name} is not installed: make test-trackers")


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own"))


@pytest.fixture
def twice(records, tmp_path):
    """Track a run that is killed after step 6 and resumed from the checkpoint at step 4."""

    def track(name):
        check_trackers([name])
        folder = tmp_path / "run"
        start = Record("start", 4, 1, {**records[0].values, "start_step": 4})
        parts = (
            [record for record in records if record.step <= 6],
            [start, *(record for record in records if record.step > 4), END],
        )
        for resumed, part in enumerate(parts):
            (sink,) = open_trackers(
                [name],
                workspace=folder,
                parameters=PARAMETERS,
                resumed=bool(resumed),
                warn=pytest.fail,
            )
            assert sink.failure is None
            for record in part:
                sink.write(record)
            sink.close()
        return folder / "trackers" / name

    return track


@needs("tensorboard")
# Imports of its reader's dependencies may warn.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_one_run_without_repeated_steps(twice):
    folder = twice("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list(folder.iterdir())) == 2
    events = EventAccumulator(str(folder)).Reload()
    loss = events.Scalars("train/loss")
    assert [event.step for event in loss] == list(range(1, 9))
    assert loss[-1].value == pytest.approx(3.0)
    assert [event.value for event in events.Scalars("validation/top1")] == [30.0, 50.0]
    assert events.Scalars("results/validation/top1")[0].value == 50.0
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| optim.lr | 2.048 |" in text
    assert "| device | Tesla V100-SXM2-16GB |" in text


@needs("mlflow")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_one_finished_run(twice):
    folder = twice("mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("image-classification")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (folder / "run-id").read_text().strip()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["optim.lr"] == "2.048"
    assert run.data.params["world_size"] == "8"
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert set(steps) == set(range(1, 9))
    assert run.data.metrics["validation/top1"] == 50.0


def wandb_records(content):
    """Yield the records of an offline run's file: LevelDB's log format after a 7-byte header."""
    at, data, block = 7, b"", 32 * 1024
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield data
            data = b""


def read_wandb(files):
    """Return the logged rows and the exit codes of offline runs' files."""
    from wandb.proto import wandb_internal_pb2

    logged: list[dict[str, str]] = []
    exits: list[int] = []
    for data in (data for file in files for data in wandb_records(file.read_bytes())):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            logged.append({i.key or ".".join(i.nested_key): i.value_json for i in items})
        elif record.WhichOneof("record_type") == "exit":
            exits.append(record.exit.exit_code)
    return logged, exits


@needs("wandb")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_has_both_parts_under_one_id(twice):
    folder = twice("wandb")

    run_id = (folder / "run-id").read_text().strip()
    files = sorted(folder.glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2
    logged: list[dict[str, str]] = []
    exits: list[int] = []
    end_s = time.monotonic() + 30
    # wandb's service process may write the end of a file after the run has finished.
    while len(exits) < 2 and time.monotonic() < end_s:
        logged, exits = read_wandb(files)
    steps = [row["step"] for row in logged if "train/loss" in row]
    assert steps == [str(step) for step in (*range(1, 7), *range(5, 9))]
    assert any(row.get("validation/top1") == "50" for row in logged)
    assert sorted(exits) == [0, 1]
