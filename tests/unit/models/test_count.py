import pytest
import torch

from image_classification import models
from image_classification.models.size import count_multiply_adds, count_parameters


def counted_by_hand(name: str, image_size_px: int) -> int:
    """Sum k*k*in/groups multiply-adds over every value a layer puts out, seen by hooks."""
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
def test_multiply_adds_are_those_of_the_layers(name: str, image_size_px: int) -> None:
    assert count_multiply_adds(name, image_size_px) == counted_by_hand(name, image_size_px)


def test_published_multiply_adds() -> None:
    # arXiv:1512.03385 has 1.8e9 and 3.8e9 for 18 and 50 layers, the latter with v1's strides.
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


def test_buffers_are_no_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    assert count_parameters(model) == 3 * 8 * 9 + 8 + 16
