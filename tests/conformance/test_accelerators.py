"""The same tests for every registered accelerator; skipped without its hardware."""

import dataclasses
import json

import pytest
import torch

from image_classification.config.schema import PlatformConfig
from image_classification.core.errors import ConfigError, DeviceError
from image_classification.devices.accelerator import ACCELERATORS, Accelerator, get_accelerator


@pytest.fixture(params=list(ACCELERATORS))
def accelerator(request: pytest.FixtureRequest) -> Accelerator:
    return get_accelerator(request.param)


@pytest.fixture
def present(accelerator: Accelerator) -> Accelerator:
    if accelerator.found().count == 0:
        pytest.skip(f"no {accelerator.kind} here")
    return accelerator


def test_kind_is_a_value_of_platform_device(
    accelerator: Accelerator,
) -> None:
    fields = {f.name: f for f in dataclasses.fields(PlatformConfig)}
    assert accelerator.kind in fields["device"].metadata["choices"]
    assert type(accelerator) is ACCELERATORS.get(accelerator.kind)


def test_found(accelerator: Accelerator) -> None:
    found = accelerator.found()
    assert found.kind == accelerator.kind
    assert len(found.capabilities) == found.count
    assert all(isinstance(name, str) and name for name in found.names)


def test_process_group_backend_is_known_to_torch(accelerator: Accelerator) -> None:
    assert accelerator.process_group_backend in torch.distributed.Backend.backend_list


def test_environment_is_serializable_as_json(accelerator: Accelerator) -> None:
    environment = accelerator.environment()
    assert {"cuda", "cudnn", "driver", "devices"} <= environment.keys()
    assert environment["devices"] == list(accelerator.found().names)
    json.dumps(environment)


def test_float32_is_exact(present: Accelerator) -> None:
    device = present.device(0)
    assert device.type == present.kind
    present.check_precision("FP32", "float32")
    present.set_matmul_precision("FP32")
    a = torch.full((8, 8), 1.0 + 2.0**-12, device=device)
    with present.autocast("float32"):
        product = a @ torch.eye(8, device=device)
    present.synchronize()
    # bfloat16 or TF32 inputs would have lost the last bits.
    assert torch.equal(product, a)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_precision_is_refused_or_runs(present: Accelerator, dtype: str) -> None:
    device = present.device(0)
    try:
        present.check_precision("AMP", dtype)
    except DeviceError as error:
        assert dtype in error.message and "use" in error.message
        return
    with present.autocast(dtype):
        product = torch.ones(4, 4, device=device) @ torch.ones(4, 4, device=device)
    assert str(product.dtype) == f"torch.{dtype}"


def test_loss_scaling_skips_an_overflow_and_halves_the_scale(present: Accelerator) -> None:
    device = present.device(0)
    scaler = present.grad_scaler(128.0)
    weight = torch.nn.Parameter(torch.ones(3, device=device))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler.scale((weight * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [1.0, 1.0, 1.0]
    assert scaler.get_scale() == 64.0
    optimizer.zero_grad()
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0.0, 0.0, 0.0]


def test_without_loss_scale_the_scaler_is_disabled(present: Accelerator) -> None:
    scaler = present.grad_scaler(None)
    assert not scaler.is_enabled()
    assert scaler.scale(torch.tensor(3.0)).item() == 3.0


def test_peak_memory_is_in_bytes(present: Accelerator) -> None:
    held = torch.ones(1 << 20, device=present.device(0))
    peak = present.peak_memory_bytes()
    assert peak is None or peak >= held.numel() * held.element_size()


def test_elapsed_time_is_not_negative(present: Accelerator) -> None:
    present.device(0)
    start = present.mark()
    end = present.mark()
    assert present.elapsed_s(start, end) >= 0.0


def test_unsupported_kind() -> None:
    with pytest.raises(ConfigError, match="xpu"):
        get_accelerator("xpu")
