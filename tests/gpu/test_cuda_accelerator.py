"""The CUDA accelerator on a real GPU."""

import os

import pytest
import torch
from torch import nn

from image_classification.config.schema import MixingConfig, OptimConfig
from image_classification.core.errors import DeviceError
from image_classification.core.types import WorldInfo
from image_classification.devices.cuda import CudaAccelerator, set_affinity
from image_classification.distributed.collectives import agree_max, all_reduce_sum
from image_classification.distributed.world import control_group, process_group
from image_classification.optim.ema import Ema
from image_classification.optim.losses import Mixer
from image_classification.optim.optimizers import build_optimizer, param_groups

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="no CUDA device"),
]


@pytest.fixture
def cuda() -> CudaAccelerator:
    accelerator = CudaAccelerator()
    accelerator.device(0)
    return accelerator


def test_found_and_environment(cuda: CudaAccelerator) -> None:
    found = cuda.found()
    assert found.count == torch.cuda.device_count()
    assert all(float(c) >= 7.0 for c in found.capabilities)
    environment = cuda.environment()
    assert environment["devices"] == list(found.names)
    assert all(environment[key] for key in ("cuda", "cudnn", "driver"))


def test_rank_beyond_the_gpus(cuda: CudaAccelerator) -> None:
    with pytest.raises(DeviceError, match="has no GPU"):
        cuda.device(torch.cuda.device_count())


def test_fp32_is_exact_and_tf32_is_not(cuda: CudaAccelerator) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        with pytest.raises(DeviceError, match="Ampere"):
            cuda.check_precision("TF32", "float32")
        return
    a = torch.full((256, 256), 1.0 + 2.0**-12, device="cuda")
    eye = torch.eye(256, device="cuda")
    images = torch.full((8, 64, 16, 16), 1.0 + 2.0**-12, device="cuda")
    kernel = torch.eye(64, device="cuda").view(64, 64, 1, 1)
    try:
        for name, exact in (("FP32", True), ("TF32", False), ("FP32", True)):
            cuda.check_precision(name, "float32")
            cuda.set_matmul_precision(name)
            assert torch.equal(a @ eye, a) is exact
            if exact:
                assert torch.equal(nn.functional.conv2d(images, kernel), images)
    finally:
        cuda.set_matmul_precision("FP32")


def test_sgd_steps_equal_those_on_the_cpu(cuda: CudaAccelerator) -> None:
    cfg = OptimConfig(lr=0.1, momentum=0.875, weight_decay=1e-2)
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(device)
        # mypy does not know this argument of nn.Module.to.
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = build_optimizer(param_groups(net, 1e-2, "no_norm_bias"), cfg, device)
        for _ in range(3):
            for parameter in net.parameters():
                parameter.grad = torch.full_like(parameter, 0.5)
            optimizer.step()
        results.append([p.detach().cpu() for p in net.parameters()])
    torch.testing.assert_close(*results)


def test_overflow_in_the_first_step_changes_nothing(cuda: CudaAccelerator) -> None:
    weight = nn.Parameter(torch.ones(1024, device="cuda"))
    freed_nans = [torch.full((1024,), float("nan"), device="cuda") for _ in range(64)]
    del freed_nans
    cfg = OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.0)
    optimizer = build_optimizer([{"params": [weight], "weight_decay": 0.0}], cfg, "cuda")
    scaler = cuda.grad_scaler("dynamic")
    ema = Ema(nn.ParameterList([weight]), decay=0.5)
    for gradient in (float("inf"), 1.0):
        scale = scaler.scale(torch.ones((), device="cuda"))
        weight.grad = torch.full_like(weight, gradient) * scale
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        applied = torch.tensor(scaler.get_scale() >= before, device="cuda")
        ema.update(nn.ParameterList([weight]), applied)
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.9))
    torch.testing.assert_close(ema.state_dict()["0"], torch.full_like(weight, 0.95))


def test_mixing_on_the_gpu_equals_the_cpu(cuda: CudaAccelerator) -> None:
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    mixer = Mixer(MixingConfig(mixup=0.2, cutmix=1.0), 8, seed=3)
    for k in range(6):
        on_cpu, on_gpu = mixer(images, labels, k), mixer(images.cuda(), labels.cuda(), k)
        for a, b in zip(on_cpu, on_gpu, strict=True):
            torch.testing.assert_close(a, b.cpu())


def test_process_group_of_one_rank(cuda: CudaAccelerator) -> None:
    # With one rank, no process group is started.
    with process_group(WorldInfo(), cuda.process_group_backend, timeout_s=60.0):
        assert control_group() is None
        assert agree_max(2) == 2
        assert all_reduce_sum(torch.ones(1, device="cuda")).item() == 1.0


def test_affinity_from_the_driver(cuda: CudaAccelerator) -> None:
    before = os.sched_getaffinity(0)
    try:
        near = set_affinity("socket", 0, 1)
        assert near and near <= before
        assert len(set_affinity("socket_single", 0, 1)) <= len(near)
    finally:
        os.sched_setaffinity(0, before)


def test_memory_limit(cuda: CudaAccelerator) -> None:
    free_bytes = cuda.free_memory_bytes()
    assert free_bytes is not None and 0 < free_bytes <= torch.cuda.mem_get_info()[1]
    with cuda.memory_limit(2**28):
        torch.empty(2**27, dtype=torch.uint8, device="cuda")
        peak_bytes = cuda.peak_memory_bytes()
        assert peak_bytes is not None and 2**27 <= peak_bytes < 2**28
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**29, dtype=torch.uint8, device="cuda")
    torch.empty(2**29, dtype=torch.uint8, device="cuda")
