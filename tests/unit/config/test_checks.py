import pytest

from image_classification.config import RunConfig, resolve
from image_classification.config.checks import check_augmentation
from image_classification.core.errors import ConfigError


def resolved(**overrides: object) -> RunConfig:
    return resolve(
        "resnet50",
        "AMP",
        "convergence",
        "DGX1V",
        overrides={f"data.{key}": value for key, value in overrides.items()},
    )


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ({"randaugment_magnitude": 12}, "set data.augmentation to randaugment or leave it out"),
        ({"randaugment_ops": 3, "augmentation": "autoaugment"}, "with data.augmentation autoaug"),
        ({"augmentation_fill": 0}, "set data.augmentation to a policy or leave it out"),
    ],
)
def test_a_setting_of_an_augmentation_policy_that_is_off_is_an_error(
    overrides: dict[str, object], remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(**overrides)
    assert remedy in caught.value.message
    assert "overrides argument" in caught.value.message


def test_settings_of_an_active_augmentation_policy() -> None:
    data = resolved(
        augmentation="randaugment", randaugment_magnitude=12, randaugment_ops=3, augmentation_fill=0
    ).data
    assert (data.randaugment_magnitude, data.randaugment_ops, data.augmentation_fill) == (12, 3, 0)
    assert resolved(augmentation="trivialaugment", augmentation_fill=0).data.augmentation_fill == 0


def test_switching_off_a_recipes_policy_leaves_its_other_settings() -> None:
    values = {
        "data.augmentation": "none",
        "data.augmentation_fill": 0,
        "data.randaugment_ops": 3,
        "data.randaugment_magnitude": 7,
    }
    origins = dict.fromkeys(values, "somewhere")
    check_augmentation(values, origins, {"data.augmentation"})
    with pytest.raises(ConfigError, match="randaugment_magnitude 7"):
        check_augmentation(values, origins, {"data.randaugment_magnitude"})


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"augmentation": "autoaugmentt"}, "did you mean 'autoaugment'"),
        ({"augmentation": "randaugment", "randaugment_magnitude": 31}, "30 or less"),
        ({"augmentation": "randaugment", "randaugment_ops": 0}, "1 or more"),
        ({"colour_jitter_hue": 0.6}, "0.5 or less"),
        ({"colour_jitter_contrast": -0.1}, "0 or more"),
        ({"random_erasing": 1.5}, "1 or less"),
    ],
)
def test_augmentation_values_out_of_range(overrides: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(**overrides)
    assert part in caught.value.message
