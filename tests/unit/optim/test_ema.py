import pytest
import torch
from torch import nn

from image_classification.optim.ema import Ema


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def shift(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(int(by) if not tensor.is_floating_point() else by)


@pytest.mark.parametrize("applied", [None, torch.tensor(True)], ids=["none", "true"])
def test_update_formula(applied: torch.Tensor | None) -> None:
    model = net()
    ema = Ema(model, decay=0.9)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(3):
        shift(model, 1.0)
        ema.update(model, applied)
        for key, value in model.state_dict().items():
            expected[key] = (
                0.9 * expected[key] + 0.1 * value if value.is_floating_point() else value
            )
    torch.testing.assert_close(dict(ema.state_dict()), expected)
    assert ema.state_dict()["1.num_batches_tracked"].dtype == torch.int64
    assert int(ema.state_dict()["1.num_batches_tracked"]) == 3


def test_discarded_update_changes_nothing() -> None:
    model = net()
    ema = Ema(model, decay=0.5)
    before = {k: v.clone() for k, v in ema.state_dict().items()}
    shift(model, 1.0)
    ema.update(model, torch.tensor(False))
    assert all(torch.equal(v, before[k]) for k, v in ema.state_dict().items())


def test_average_is_independent_of_the_model() -> None:
    model = net()
    ema = Ema(model, decay=0.0)
    weight = model.state_dict()["0.weight"].clone()
    assert not ema.module.training and model.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    shift(model, 1.0)
    assert torch.equal(ema.state_dict()["0.weight"], weight)
    ema.update(model)
    torch.testing.assert_close(ema.state_dict()["0.weight"], weight + 1)
    torch.testing.assert_close(ema.module(torch.ones(2, 3)), model.eval()(torch.ones(2, 3)))


def test_loaded_state_continues_the_average() -> None:
    model = net()
    ema = Ema(model, decay=0.75)
    shift(model, 2.0)
    ema.update(model)
    saved = {k: v.clone() for k, v in ema.state_dict().items()}
    other = Ema(net(), decay=0.75)
    other.load_state_dict(saved)
    shift(model, 1.0)
    ema.update(model)
    other.update(model)
    for key, value in ema.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_other_models_and_decays_are_refused() -> None:
    ema = Ema(net(), decay=0.9)
    with pytest.raises(AssertionError):
        ema.update(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"0\.\.1"):
        Ema(net(), decay=1.5)
