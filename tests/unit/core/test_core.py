"""Errors, registry and intervals."""

import pickle

import pytest

from image_classification.core.errors import ConfigError, DivergedError, nearest, unknown
from image_classification.core.registry import Registry
from image_classification.core.units import Every


def test_a_user_error_is_one_line():
    assert ConfigError("first\n   second").message == "first second"


def test_the_nearest_name_ignores_case():
    assert nearest("dgx1v", ["DGX1V", "DGXA100"]) == "DGX1V"
    assert nearest("zzz", ["DGX1V"]) == ""


def test_unknown_names_its_place_the_nearest_and_the_valid():
    text = unknown("model", "resnet5", ["resnet50", "resnet18"], where="configs.yml:3")
    assert text.startswith("configs.yml:3: unknown model 'resnet5'; did you mean 'resnet50'?")
    assert "resnet18" in text


def test_diverged_crosses_process_boundaries():
    again = pickle.loads(pickle.dumps(DivergedError("bad", step=7)))
    assert (str(again), again.step) == ("bad", 7)


def test_a_duplicate_registration_raises():
    registry: Registry[int] = Registry("thing")
    registry.add("one", 1)
    with pytest.raises(ValueError, match="registered twice"):
        registry.add("one", 2)


def test_a_lazy_entry_is_imported_on_first_use():
    registry: Registry[object] = Registry("function")
    registry.add("sqrt", "math:sqrt")
    assert registry.get("sqrt")(9) == 3  # type: ignore[operator]
    with pytest.raises(ConfigError, match="did you mean 'sqrt'"):
        registry.get("sqrtt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 steps", Every(3, "steps")),
        ("1 epoch", Every(1, "epochs")),
        ("10 minutes", Every(10, "minutes")),
        ("5min", Every(5, "minutes")),
    ],
)
def test_intervals(text, expected):
    assert Every.parse(text) == expected


@pytest.mark.parametrize("text", ["0 steps", "steps", "3 hours", "-1 steps", "1.5 epochs", ""])
def test_unreadable_intervals_are_refused(text):
    with pytest.raises(ConfigError, match="N steps"):
        Every.parse(text)


def test_when_an_interval_is_due():
    assert [s for s in range(1, 10) if Every(3, "steps").due(s, 1e9)] == [3, 6, 9]
    assert not Every(1, "minutes").due(5, 59.0)
    assert Every(1, "minutes").due(5, 60.0)
    assert not Every(1, "epochs").due(5, 1e9)
    assert [e for e in range(1, 7) if Every(2, "epochs").due_epoch(e)] == [2, 4, 6]
    assert Every(7, "steps").due_epoch(1)
