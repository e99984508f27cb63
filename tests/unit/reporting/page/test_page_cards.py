import pytest

from image_classification.reporting.build_report import build_report
from image_classification.reporting.page import Card, headline


@pytest.fixture
def cards(make_config, dgx1):
    def build(results, mode="convergence", telemetry=None):
        config = make_config(names={"mode": mode}, run={"mode": mode})
        report = build_report(
            config, devices=dgx1, environment={}, results=results, telemetry=telemetry
        )
        return {card.label: card for card in headline(report)}

    return build


def test_a_training_has_best_and_last_accuracy_speed_time_and_verdicts(cards, results):
    results |= {
        "best": {"top1": 76.88, "epoch": 88, "step": 55_000},
        "last": {"top1": 76.8, "epoch": 90, "step": 56_250},
    }
    found = cards(results)
    assert found["top-1, best"] == Card(
        "top-1, best", "76.88", "%", "epoch 88, last 76.80 % (epoch 90)"
    )
    assert found["training speed"] == Card(
        "training speed", "8,300", "images/s", "2.0 % of it waiting for data"
    )
    assert (found["time"].value, found["time"].detail) == (
        "4 h 02 min",
        "training 3 h 50 min, validation 9 min 20 s",
    )
    assert ("reproduced", 2) in found["against the published figures"].verdicts
    assert "step time, p50" not in found and "energy" not in found
    results["best"] = results["last"]
    assert cards(results)["top-1, best"].detail == "epoch 90, the last"


def test_an_evaluation_names_its_checkpoint_and_has_no_training(cards, results):
    evaluated = {"checkpoint": "runs/a", "which": "best", "epoch": 3, "step": 132}
    found = cards({"validation": results["validation"], "evaluated": evaluated}, "evaluate")
    assert found["top-1"].detail == "top-5 93.20 %, 50,000 images, best checkpoint, step 132"
    assert {label for label in found if "train" in label or "step" in label} == set()


def test_benchmarks_have_speed_and_latency_and_no_accuracy(cards, results):
    training = cards({"train": results["train"]}, "benchmark_training")
    assert training["step time, p50"] == Card("step time, p50", "240.0", "ms", "p99 300.0 ms")
    rows = [
        {"batch": 1, "images_per_s": 150.0, "latency_ms": {"mean": 6.7, "p99": 8.0}},
        {"batch": 64, "images_per_s": 1260.0, "latency_ms": {"mean": 50.8}},
        {"batch": 128},
    ]
    inference = cards({"inference": rows}, "benchmark_inference")
    assert inference["inference speed"].detail == "at batch size 64"
    assert inference["latency at batch size 1"].detail == "mean; p99 8.00 ms"
    loading = cards({"data": {"images_per_s": 1100.0}}, "benchmark_data")
    assert [*loading] == ["loading speed"]
    assert not any("top-1" in label for label in {**training, **inference})


def test_energy_and_memory_of_several_devices(cards):
    devices = [
        {"name": "V100", "power_w_mean": 250.0, "memory_peak_bytes": (10 + n) * 2**30}
        for n in range(2)
    ]
    telemetry = {"devices": devices, "energy_j": 7.2e6, "images_per_joule": 0.5}
    found = cards({}, telemetry=telemetry)
    assert found["peak memory"] == Card("peak memory", "11.0", "GiB", "the highest of all devices")
    assert found["energy"] == Card(
        "energy", "2.00", "kWh", "mean 250 W per device, 0.500 images per joule"
    )
