"""Telemetry of a whole run: its windows, its end, and several nodes."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from image_classification.core.errors import ConfigError, DivergedError
from image_classification.core.types import Record
from image_classification.distributed.collectives import AnyRank
from image_classification.engine.stop import Stopped, StopRequest
from image_classification.launch.recorder import RunRecorder, combine_nodes
from image_classification.launch.run import MODES
from image_classification.reporting.sinks import read_metrics
from image_classification.telemetry import cpu as cpu_sensor
from image_classification.telemetry.cpu import Rapl
from tests.support.ranks import run_ranks


@pytest.fixture
def drive(small_config, open_run, no_pictures):
    """Run a mode in this process; return exit code, report and records."""

    def run(mode="convergence", records=None, opens_page=False, **sections):
        built = open_run(small_config(mode, run__save_checkpoints=False, **sections))
        recorder = RunRecorder(built, built.accelerator.found())
        recorder.opens_page = opens_page
        with StopRequest(AnyRank()) as stop, closing(recorder):
            code = recorder.record_all((records or MODES[mode].records)(built, stop))
        report = json.loads((built.workspace / "report.json").read_text())
        return code, report, read_metrics(built.workspace / "metrics.jsonl")

    return run


@pytest.fixture
def no_rapl(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_sensor, "POWERCAP", tmp_path / "absent")


@pytest.fixture
def ten_watts(monkeypatch, tmp_path):
    """Let the CPU packages use 10 W, by the clock of the samples."""
    monkeypatch.setattr(Rapl, "__init__", lambda self, root: None)
    monkeypatch.setattr(Rapl, "energy_j", lambda self: 10.0 * time.perf_counter())


def sampling() -> bool:
    return any(thread.name == "telemetry" for thread in threading.enumerate())


def test_cpu_run_reports_what_is_measured_and_what_is_not(drive, no_rapl):
    code, report, records = drive()
    assert code == 0 and not sampling()
    telemetry = report["telemetry"]
    (device,) = telemetry["devices"]
    assert device["memory_peak_bytes"] > 100 * 2**20
    assert 0 < device["utilization_mean"] < 1.5
    assert device["window_s"] > 0 and device["samples"] >= 2
    for key in ("power_w_mean", "power_w_max", "energy_j", "temperature_c_max", "throttled"):
        assert device[key] is None, key
    assert telemetry["energy_j"] is None and telemetry["images_per_joule"] is None
    assert "not measured: power_w, energy_j (no processor package in" in telemetry["source"]
    assert "over the steps that the speed is computed from" in telemetry["source"]
    assert [r for r in records if r.kind == "telemetry"]
    warnings = [r.values["message"] for r in records if r.kind == "warning"]
    assert not [message for message in warnings if "measured" in message]
    assert records[-1].kind == "end"


def test_the_page_is_opened_and_warnings_are_reported(drive, monkeypatch, capsys):
    opened: dict[str, bool] = {}
    monkeypatch.setattr("webbrowser.open", lambda url: opened.setdefault(url, True))
    monkeypatch.setenv("BROWSER", "true")
    message = "one thread only"
    _, report, _ = drive(
        records=lambda run, stop: iter([run.record("warning", message=message)]), opens_page=True
    )
    assert report["warnings"][-1] == message
    (url,) = opened
    assert url.endswith("/report.html")
    assert f"opened {url.removeprefix('file://')}" in capsys.readouterr().out


def test_telemetry_window_covers_the_measured_steps(drive, ten_watts):
    _, report, _ = drive("benchmark_training_short", run__max_steps=12)
    telemetry, train = report["telemetry"], report["results"]["train"]
    (device,) = telemetry["devices"]
    assert device["power_w_mean"] == pytest.approx(10.0, rel=0.05)
    assert telemetry["energy_j"] == pytest.approx(10.0 * device["window_s"], rel=0.05)
    # One warm-up step of 12: the window has the images of the other 11, and their time.
    assert telemetry["images_per_joule"] * telemetry["energy_j"] == pytest.approx(11 * 8)
    assert 11 * 8 / device["window_s"] == pytest.approx(train["images_per_s"], rel=0.3)


def test_run_shorter_than_the_warm_up_uses_all_steps(drive, ten_watts):
    _, report, _ = drive(run__max_steps=3, run__benchmark_warmup_steps=20)
    telemetry = report["telemetry"]
    assert telemetry["images_per_joule"] * telemetry["energy_j"] == pytest.approx(3 * 8)
    assert "over all steps, as there is none after the warm-up" in telemetry["source"]


@pytest.mark.parametrize(
    ("mode", "images"), [("benchmark_inference", 2 * 3 + 4 * 3), ("benchmark_data", 8 * 4)]
)
def test_window_of_other_modes(drive, ten_watts, mode, images):
    _, report, _ = drive(
        mode,
        run__inference_batches=(2, 4),
        run__inference_iterations=3,
        run__max_steps=4,
    )
    telemetry = report["telemetry"]
    assert telemetry["images_per_joule"] * telemetry["energy_j"] == pytest.approx(images)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Stopped("SIGTERM"), 75),
        (DivergedError("the loss is nan", step=1), 3),
        (ConfigError("no"), None),
        (RuntimeError("a bug"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_sampling_ends_with_the_run(drive, no_rapl, error, code):
    def records(run, stop):
        yield Record("start", 0, 0, {})
        assert sampling()
        raise error

    if code is None:
        with pytest.raises(type(error)):
            drive(records=records)
    else:
        found, report, _ = drive(records=records)
        assert found == code
        assert "no step was taken" in report["telemetry"]["source"]
    assert not sampling()


def node(energies, window="measured", images=100):
    devices = [{"name": "V100", "energy_j": e, "source": "NVML"} for e in energies]
    return {"devices": devices, "images": images, "window": window}


def test_nodes_are_combined():
    telemetry = combine_nodes([node([100.0, 50.0]), node([25.0, 25.0])], 2)
    assert len(telemetry["devices"]) == 4
    assert telemetry["energy_j"] == 200.0 and telemetry["images_per_joule"] == 0.5
    window = "over the steps that the speed is computed from"
    assert telemetry["source"] == f"NVML | means and energy: {window}"


@pytest.mark.parametrize(
    "nodes", [[node([100.0, None]), node([1.0])], [node([100.0])]], ids=["a device", "a node"]
)
def test_no_total_without_every_device_and_node(nodes):
    telemetry = combine_nodes(nodes, 2)
    assert telemetry["energy_j"] is None and telemetry["images_per_joule"] is None


def test_missing_node_is_counted():
    assert "1 of 2 nodes did not answer" in combine_nodes([node([100.0])], 2)["source"]
    assert combine_nodes([], 2)["devices"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "devices"), [(1, 1), (2, 2)])
def test_one_rank_per_node_samples(jobs, nodes, devices):
    found = run_ranks(jobs, Path(__file__).with_name("telemetry_ranks.py"), 2, nodes)
    found.sort(key=lambda rank: rank["rank"])
    assert [rank["samples"] for rank in found] == [True, nodes == 2]
    assert len(found[0]["report"]["devices"]) == devices
    memory = [d["memory_peak_bytes"] for d in found[0]["report"]["devices"]]
    # Both ranks allocate 200 MiB; on one node they are one device.
    assert min(memory) > (400 if nodes == 1 else 200) * 2**20
