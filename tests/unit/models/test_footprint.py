from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from image_classification.models import build
from image_classification.models.size import largest_state_bytes, state_bytes


@pytest.mark.parametrize(("has_average", "copies"), [(False, 1), (True, 2)])
def test_the_bytes_are_those_of_a_checkpoints_tensors(
    tmp_path: Path, has_average: bool, copies: int
) -> None:
    model = build("resnet18", 10)
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
    assert expected <= written < 1.002 * expected  # and its header


def test_the_largest_is_named() -> None:
    requests = [("resnet18", 1000, "paper", 1, False), ("resnet34", 1000, "paper", 2, False)]
    name, size = largest_state_bytes(requests)
    assert name == "resnet34" and size == state_bytes(*requests[1])
    assert size > 3 * 4 * 21_797_672  # weights and two values a parameter, float32
