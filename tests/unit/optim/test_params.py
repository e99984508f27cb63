import pytest
import torch
import torchvision
from torch import nn

from image_classification.core.errors import ConfigError
from image_classification.optim.optimizers import decay_split, param_groups

RULES = ("no_norm_bias", "legacy_bn_name", "all")


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return torchvision.models.resnet50()


@pytest.mark.parametrize("rule", RULES)
def test_every_parameter_is_in_exactly_one_group(resnet50: nn.Module, rule: str) -> None:
    groups = param_groups(resnet50, 1e-4, rule)
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in resnet50.parameters())
    assert [g["weight_decay"] for g in groups] == [1e-4, 0.0]


def test_rules_over_resnet50(resnet50: nn.Module) -> None:
    names = [n for n, _ in resnet50.named_parameters()]
    by_type = decay_split(resnet50, "no_norm_bias")
    # 53 convolutions and the classifier's matrix.
    assert len(by_type.decayed) == 54
    assert all(n.endswith("weight") for n in by_type.decayed)
    assert not any("bn" in n or "downsample.1" in n for n in by_type.decayed)
    assert "fc.bias" in by_type.not_decayed

    legacy = decay_split(resnet50, "legacy_bn_name")
    # The four downsample norms (weight and bias) and fc.bias decay as well.
    assert set(legacy.decayed) - set(by_type.decayed) == {
        "fc.bias",
        *(f"layer{i}.0.downsample.1.{leaf}" for i in (1, 2, 3, 4) for leaf in ("weight", "bias")),
    }
    assert all("bn" in n for n in legacy.not_decayed)

    assert decay_split(resnet50, "all").decayed == tuple(names)


def test_by_type_knows_other_norms_whatever_their_names() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm(4)
    )
    assert decay_split(model, "no_norm_bias").decayed == ("0.weight",)


def test_groups_and_names_agree(resnet50: nn.Module) -> None:
    names = {id(p): n for n, p in resnet50.named_parameters()}
    groups = param_groups(resnet50, 1e-4, "legacy_bn_name")
    split = decay_split(resnet50, "legacy_bn_name")
    assert tuple(names[id(p)] for p in groups[0]["params"]) == split.decayed
    assert tuple(names[id(p)] for p in groups[1]["params"]) == split.not_decayed


def test_a_shared_parameter_is_grouped_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    groups = param_groups(model, 0.1, "all")
    assert len(groups[0]["params"]) == 3


def test_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="legacy_bn_name"):
        param_groups(torch.nn.Linear(1, 1), 0.1, "legacy_bn")
