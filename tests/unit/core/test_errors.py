import pickle

from image_classification.core.errors import ConfigError, DivergedError, nearest, unknown


def test_the_message_of_a_user_error_is_one_line() -> None:
    assert ConfigError("first\n   second").message == "first second"


def test_nearest_ignores_case() -> None:
    assert nearest("dgx1v", ["DGX1V", "DGXA100"]) == "DGX1V"
    assert nearest("zzz", ["DGX1V"]) == ""


def test_message_for_an_unknown_name() -> None:
    assert unknown("model", "resnet5", ["resnet50", "resnet18"]) == (
        "unknown model 'resnet5'; did you mean 'resnet50'? (valid: resnet50, resnet18)"
    )
    assert unknown("model", "zzz", map(str, range(25))).endswith("(valid: 25 names, see --list)")


def test_diverged_error_is_pickled() -> None:
    error = pickle.loads(pickle.dumps(DivergedError("bad", step=7)))
    assert (str(error), error.step) == ("bad", 7)
