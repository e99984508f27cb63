"""Telemetry of a real GPU."""

import time

import pytest
import torch

from image_classification.devices.cuda import CudaAccelerator
from image_classification.telemetry.sampler import Sampler, TrainingWindows
from image_classification.telemetry.sensors import open_sensors, own_location

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="no CUDA device"),
]


def test_power_of_a_busy_gpu_and_the_cost_of_sampling() -> None:
    device = CudaAccelerator().device(0)
    name = torch.cuda.get_device_name(device)
    work = TrainingWindows()
    sampler = Sampler(open_sensors("cuda", [own_location(device, name)]), work)
    matrix = torch.randn(4096, 4096, device=device)
    sampler.start()
    begun_s = time.perf_counter()
    work.begin(measured=True)
    while time.perf_counter() - begun_s < 5:
        for _ in range(20):
            matrix @ matrix
        torch.cuda.synchronize()
        work.note(1)
    sampler.stop()
    time_s = time.perf_counter() - begun_s
    assert sampler.trouble() is None
    (figures,) = sampler.figures()["devices"]
    print(figures, f"{1000 * sampler.cost_s / sampler.samples:.3f} ms per sample")
    assert figures["name"] == name
    assert figures["memory_peak_bytes"] > matrix.nbytes
    assert sampler.cost_s / time_s < 0.01
    if "MIG" not in figures["source"]:
        assert 20 < figures["power_w_mean"] <= figures["power_w_max"] + 50
        assert figures["energy_j"] == pytest.approx(
            figures["power_w_mean"] * figures["window_s"], rel=0.05
        )
        assert figures["utilization_mean"] > 0.3
        assert 10 < figures["temperature_c_max"] < 120
        assert figures["clock_mhz_mean"] > 100
        assert figures["throttled"] is not None
    records = sampler.take_records()
    assert len(records) >= 3 and records[-1]["memory_bytes"] > matrix.nbytes
