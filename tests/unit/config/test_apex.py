"""Apex is asked for only where it has a meaning; else refused before anything is imported."""

from typing import Any

import pytest

from image_classification.config.options import OPTIONS
from image_classification.config.resolve import resolve
from image_classification.core.errors import ConfigError


def config(precision: str = "AMP", platform: str = "DGX1V", **sections: Any) -> Any:
    overrides = {name.replace("__", "."): value for name, value in sections.items()}
    return resolve("resnet50", precision, "convergence", platform, overrides=overrides)


def test_torch_is_what_nobody_has_to_ask_for() -> None:
    assert config().precision.amp_backend == "torch"
    assert config().optim.implementation == "torch"


def test_apex_is_taken_where_it_has_a_meaning() -> None:
    made = config(precision__amp_backend="apex", optim__implementation="apex")
    assert made.precision.amp_backend == made.optim.implementation == "apex"
    assert made.precision.dtype == "float16"
    # The fused optimizer has nothing to do with the precision.
    assert config("FP32", optim__implementation="apex").optim.implementation == "apex"


def test_the_option_sets_the_key() -> None:
    (option,) = [o for o in OPTIONS if o.flags == ("--amp-backend",)]
    assert option.key == "precision.amp_backend" and option.takes_value


@pytest.mark.parametrize(
    ("precision", "platform", "sections", "words"),
    [
        ("FP32", "DGX1V", {"precision__amp_backend": "apex"}, r"AMP in float16.*FP32 in float32"),
        ("TF32", "DGXA100", {"precision__amp_backend": "apex"}, r"AMP in float16.*TF32"),
        (
            "AMP",
            "DGXA100",
            {
                "precision__amp_backend": "apex",
                "precision__dtype": "bfloat16",
                "precision__loss_scale": None,
            },
            r"AMP in float16.*AMP in bfloat16.*set precision.dtype=float16",
        ),
        (
            "AMP",
            "DGX1V",
            {"precision__amp_backend": "apex", "platform__device": "cpu"},
            r"precision.amp_backend apex .* needs an NVIDIA GPU and this run is on cpu",
        ),
        (
            "FP32",
            "CPU",
            {"optim__implementation": "apex"},
            r"optim.implementation apex .* needs an NVIDIA GPU and this run is on cpu",
        ),
        (
            "AMP",
            "DGX1V",
            {"precision__amp_backend": "apex", "model__compile": True},
            r"torch.compile.*model.compile=false",
        ),
        (
            "AMP",
            "DGX1V",
            {"optim__implementation": "apex", "optim__name": "rmsprop"},
            r"has no rmsprop .*--optimizer sgd",
        ),
        ("AMP", "DGX1V", {"precision__amp_backend": "apx"}, r"precision.amp_backend.*torch"),
    ],
)
def test_what_apex_cannot_do_is_refused_in_one_line(
    precision: str, platform: str, sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        config(precision, platform, **sections)
    assert "\n" not in caught.value.message
