from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def enliven() -> Callable[[nn.Module], nn.Module]:
    """Make a fresh model behave like a trained one: its logits depend on every tensor it holds.

    BN gets unlike gammas and betas in every channel, and the running statistics of a real batch,
    so that activations neither vanish nor explode on the way through a hundred blocks.
    """

    def apply(model: nn.Module) -> nn.Module:
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

    return apply
