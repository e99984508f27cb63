"""Telemetry of a whole run: over nodes, to the end however it comes, beside the figures."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from image_classification.core.errors import ConfigError, DivergedError
from image_classification.core.types import Record
from image_classification.distributed.host_collectives import AnyRank
from image_classification.engine.modes import MODES
from image_classification.engine.run_telemetry import combine_nodes
from image_classification.engine.stop import Stopped, StopRequest
from image_classification.launch.recorder import Session
from image_classification.reporting.sinks import read_metrics
from image_classification.telemetry import cpu as cpu_sensor
from image_classification.telemetry.cpu import Rapl


@pytest.fixture
def drive(small_config, open_run):
    """Run a mode in this process; return exit code, report and records."""

    def run(mode="convergence", **sections):
        built = open_run(small_config(mode, run__save_checkpoints=False, **sections))
        session = Session(built, built.accelerator.found())
        with StopRequest(AnyRank()) as stop:
            try:
                code = session.drive(stop)
            finally:
                session.close_sinks()
        report = json.loads((built.workspace / "report.json").read_text())
        return code, report, read_metrics(built.workspace / "metrics.jsonl")

    return run


@pytest.fixture
def no_rapl(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_sensor, "POWERCAP", tmp_path / "absent")


@pytest.fixture
def ten_watts(monkeypatch, tmp_path):
    """Let the packages use 10 W, by the clock the samples are taken with."""
    monkeypatch.setattr(Rapl, "__init__", lambda self, root: None)
    monkeypatch.setattr(Rapl, "energy_j", lambda self: 10.0 * time.perf_counter())


def sampling() -> bool:
    return any(thread.name == "telemetry" for thread in threading.enumerate())


def test_a_cpu_run_measures_what_there_is_and_says_what_is_not(drive, no_rapl):
    code, report, records = drive()
    assert code == 0 and not sampling()
    told = report["telemetry"]
    (device,) = told["devices"]
    assert device["memory_peak_bytes"] > 100 * 2**20
    assert 0 < device["utilization_mean"] < 1.5
    assert device["window_s"] > 0 and device["samples"] >= 2
    for key in ("power_w_mean", "power_w_max", "energy_j", "temperature_c_max", "throttled"):
        assert device[key] is None, key
    assert told["energy_j"] is None and told["images_per_joule"] is None
    assert "not measured: power_w, energy_j (no processor package in" in told["source"]
    assert "of the steps that the speed is of" in told["source"]
    assert [r for r in records if r.kind == "telemetry"]
    warnings = [r.values["message"] for r in records if r.kind == "warning"]
    assert not [message for message in warnings if "measured" in message]
    assert records[-1].kind == "end"


def test_the_window_is_that_of_the_speed(drive, ten_watts):
    _, report, _ = drive("benchmark_training_short", run__max_steps=12)
    told, train = report["telemetry"], report["results"]["train"]
    (device,) = told["devices"]
    assert device["power_w_mean"] == pytest.approx(10.0, rel=0.05)
    assert told["energy_j"] == pytest.approx(10.0 * device["window_s"], rel=0.05)
    # One warm-up step of 12: the window has the images of the other 11, and their time.
    assert told["images_per_joule"] * told["energy_j"] == pytest.approx(11 * 8)
    assert 11 * 8 / device["window_s"] == pytest.approx(train["images_per_s"], rel=0.3)


def test_shorter_than_the_warm_up_it_is_of_all_steps(drive, ten_watts):
    _, report, _ = drive(run__max_steps=3, run__benchmark_warmup_steps=20)
    told = report["telemetry"]
    assert told["images_per_joule"] * told["energy_j"] == pytest.approx(3 * 8)
    assert "of all steps, none after the warm-up" in told["source"]


@pytest.mark.parametrize(
    ("mode", "images"), [("benchmark_inference", 2 * 3 + 4 * 3), ("benchmark_data", 8 * 4)]
)
def test_other_modes_have_their_own_window(drive, ten_watts, mode, images):
    _, report, _ = drive(
        mode,
        run__inference_batches=(2, 4),
        run__inference_iterations=3,
        run__max_steps=4,
    )
    told = report["telemetry"]
    assert told["images_per_joule"] * told["energy_j"] == pytest.approx(images)


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
def test_no_thread_is_left_however_a_run_ends(drive, monkeypatch, no_rapl, error, code):
    def records(run, stop):
        yield Record("start", 0, 0, {})
        assert sampling()
        raise error

    monkeypatch.setitem(MODES, "convergence", replace(MODES["convergence"], records=records))
    if code is None:
        with pytest.raises(type(error)):
            drive()
    else:
        found, report, _ = drive()
        assert found == code
        assert "no step was taken" in report["telemetry"]["source"]
    assert not sampling()


def node(energies, window="measured", images=100):
    devices = [{"name": "V100", "energy_j": e, "source": "NVML"} for e in energies]
    return {"devices": devices, "images": images, "window": window}


def test_nodes_are_put_together():
    told = combine_nodes([node([100.0, 50.0]), node([25.0, 25.0])], 2)
    assert len(told["devices"]) == 4
    assert told["energy_j"] == 200.0 and told["images_per_joule"] == 0.5
    assert told["source"] == "NVML | means and energy: of the steps that the speed is of"


@pytest.mark.parametrize(
    "nodes", [[node([100.0, None]), node([1.0])], [node([100.0])]], ids=["a device", "a node"]
)
def test_no_total_without_every_part(nodes):
    told = combine_nodes(nodes, 2)
    assert told["energy_j"] is None and told["images_per_joule"] is None


def test_a_node_that_is_gone_is_named():
    assert "1 of 2 nodes did not answer" in combine_nodes([node([100.0])], 2)["source"]
    assert combine_nodes([], 2)["devices"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "devices"), [(1, 1), (2, 2)])
def test_ranks_in_processes(free_port, nodes, devices):
    script = Path(__file__).with_name("telemetry_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(nodes), str(free_port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert [t["samples"] for t in told] == [True, nodes == 2]
    assert len(told[0]["report"]["devices"]) == devices
    memory = [d["memory_peak_bytes"] for d in told[0]["report"]["devices"]]
    # Both ranks hold 200 MiB; on one node they are one device.
    assert min(memory) > (400 if nodes == 1 else 200) * 2**20


@pytest.fixture
def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
