"""Models for tests: with realistic activations, and as golden values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from image_classification.models import build
from image_classification.models.size import count_multiply_adds, count_parameters
from image_classification.models.weights import write_tensors

GOLDEN_IMAGE_SIZE_PX = 224


Model = TypeVar("Model", bound=nn.Module)


def enliven(model: Model) -> Model:
    """Give a new model's BN different parameters per channel and a batch's running statistics.

    The logits then depend on every tensor, and activations neither vanish nor explode.
    """
    generator = torch.Generator().manual_seed(11)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0.0, 0.2, generator=generator)
            norm.momentum = 1.0
        model.train()(torch.randn(4, 3, 64, 64, generator=generator))
        for norm in norms:
            norm.momentum = 0.1
    return model


def save_model(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the weights of ``model`` with the metadata of `model_metadata`."""
    with path.open("wb") as file:
        write_tensors(file, model.state_dict(), metadata)


def describe(name: str) -> dict[str, Any]:
    """Return the content of the golden file of model ``name`` with default options.

    Tensors are listed in the model's order, which optimizers and saved files depend on.
    """
    with torch.device("meta"):
        model = build(name)
    return {
        "model": name,
        "num_parameters": count_parameters(model),
        f"multiply_adds_at_{GOLDEN_IMAGE_SIZE_PX}_px": count_multiply_adds(
            name, GOLDEN_IMAGE_SIZE_PX
        ),
        "parameters": [f"{key} {list(value.shape)}" for key, value in model.named_parameters()],
        "buffers": [f"{key} {list(value.shape)}" for key, value in model.named_buffers()],
    }
