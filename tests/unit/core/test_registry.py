import pytest

from image_classification.core.errors import ConfigError
from image_classification.core.registry import Registry


def test_a_name_is_registered_once() -> None:
    registry: Registry[int] = Registry("thing")
    registry.add("one", 1)
    with pytest.raises(ValueError, match="registered twice"):
        registry.add("one", 2)


def test_a_lazy_entry_is_imported_on_first_use() -> None:
    registry: Registry[object] = Registry("function")
    registry.add("sqrt", "math:sqrt")
    assert registry.get("sqrt")(9) == 3  # type: ignore[operator]
    with pytest.raises(ConfigError, match="did you mean 'sqrt'"):
        registry.get("sqrtt")
