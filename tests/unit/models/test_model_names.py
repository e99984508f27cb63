import subprocess
import sys

import pytest

from image_classification import models
from image_classification.core.errors import ConfigError
from image_classification.models.resnet import ResNetSpec
from image_classification.models.spec import MODELS, ModelSpec

FAMILY = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet50-v1",
    "resnext50-32x4d",
    "resnext101-32x4d",
    "resnext101-64x4d",
    "se-resnet50",
    "se-resnext50-32x4d",
    "se-resnext101-32x4d",
]


def test_the_whole_family_is_listed() -> None:
    assert models.list_models() == FAMILY


def test_naming_models_does_not_import_torch() -> None:
    script = (
        "import sys; from image_classification import models; "
        "names = models.list_models(); [models.spec(n).preprocessing for n in names]; "
        "assert len(names) >= 12; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


@pytest.mark.parametrize("name", FAMILY)
def test_spec_says_what_the_model_is(name: str) -> None:
    spec = models.spec(name)
    assert spec.name == name
    assert "arXiv:" in spec.paper
    assert spec.description
    assert spec.has_se == name.startswith("se-")
    assert (spec.preprocessing.image_size, spec.preprocessing.resize) == (224, 256)
    assert spec.preprocessing.interpolation == "bilinear"
    assert spec.preprocessing.mean == (0.485, 0.456, 0.406)
    assert spec.preprocessing.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("call", [models.spec, models.build])
def test_unknown_name_offers_the_nearest(call) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'resnet5O'; did you mean 'resnet50'\?"):
        call("resnet5O")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        MODELS.add("resnet50", MODELS.get("resnet50"))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext101-32x4d"])
def test_se_reduction_without_se_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'fixed16' does not apply to {name}"):
        models.build(name, se_reduction="fixed16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "fanin"}, r"unknown model.init 'fanin'; did you mean 'fan_in'\?"),
        ({"se_reduction": "fixed"}, r"unknown model.se_reduction 'fixed'; did you mean 'fixed16'"),
        ({"num_classes": 0}, "model.num_classes must be at least 1, not 0"),
    ],
)
def test_unusable_option_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.build("se-resnet50", **options)


def test_a_family_member_that_cannot_exist_is_refused() -> None:
    with pytest.raises(AssertionError):
        ResNetSpec(name="x", description="", paper="", block="basic", blocks=(1, 1, 1, 1), groups=2)


def test_the_submodule_stays_importable_beside_the_function() -> None:
    assert isinstance(models.spec("resnet50"), ModelSpec)
