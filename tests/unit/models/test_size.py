from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from image_classification import models
from image_classification.models.size import (
    count_multiply_adds,
    count_parameters,
    largest_state_bytes,
    state_bytes,
)


def counted_by_hand(name: str, image_size_px: int) -> int:
    """Sum k*k*in/groups multiply-adds over the outputs of all layers, observed by hooks."""
    total = 0

    def hook(module, inputs, output) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    with torch.device("meta"), torch.no_grad():
        model = models.build(name).eval()
        for module in model.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                module.register_forward_hook(hook)
        model(torch.empty(1, 3, image_size_px, image_size_px))
    return total


@pytest.mark.parametrize("name", ["resnet18", "resnet50-v1", "se-resnext50-32x4d"])
@pytest.mark.parametrize("image_size_px", [224, 97])
def test_multiply_adds_equal_the_sum_over_layers(name: str, image_size_px: int) -> None:
    assert count_multiply_adds(name, image_size_px) == counted_by_hand(name, image_size_px)


def test_published_multiply_adds() -> None:
    # arXiv:1512.03385 states 1.8e9 and 3.8e9 for 18 and 50 layers, the latter with v1's strides.
    assert count_multiply_adds("resnet18", 224) == 1_814_073_344
    assert count_multiply_adds("resnet50-v1", 224) == 3_857_973_248
    assert count_multiply_adds("resnet50", 224) == 4_089_184_256


def test_options_change_the_count() -> None:
    whole = count_multiply_adds("se-resnet50", 224)
    assert whole - count_multiply_adds("se-resnet50", 224, num_classes=10) == 990 * 2048
    narrow = count_multiply_adds("se-resnet50", 224, se_reduction="fixed16")
    # Per block: squeeze and expand, each channels x units.
    saved = sum(
        2 * channels * (channels // 16 - 16) * blocks
        for channels, blocks in ((256, 3), (512, 4), (1024, 6), (2048, 3))
    )
    assert whole - narrow == saved


def test_buffers_do_not_count_as_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    assert count_parameters(model) == 3 * 8 * 9 + 8 + 16


@pytest.mark.parametrize(("has_average", "copies"), [(False, 1), (True, 2)])
def test_state_bytes_equal_the_size_of_a_file(
    tmp_path: Path, has_average: bool, copies: int
) -> None:
    model = models.build("resnet18", 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    tensors = {f"momentum.{i}": tensor for i, tensor in enumerate(momentum)}
    for copy in range(copies):
        weights = model.state_dict().items()
        tensors |= {f"{copy}.{name}": tensor.clone() for name, tensor in weights}
    save_file(tensors, tmp_path / "state.safetensors")
    expected = state_bytes("resnet18", 10, "paper", 1, has_average)
    written = (tmp_path / "state.safetensors").stat().st_size
    assert expected <= written < 1.002 * expected  # with the header


def test_largest_state_bytes_names_the_largest_model() -> None:
    requests = [("resnet18", 1000, "paper", 1, False), ("resnet34", 1000, "paper", 2, False)]
    name, size = largest_state_bytes(requests)
    assert name == "resnet34" and size == state_bytes(*requests[1])
    assert size > 3 * 4 * 21_797_672  # weights and two values per parameter, float32
