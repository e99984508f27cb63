import math

import pytest

from image_classification.core.units import (
    Every,
    counted,
    duration,
    finite,
    number,
    percent,
    rate,
    size,
)


def test_finite_replaces_nan_and_infinity_at_any_depth() -> None:
    value = {"a": (1.0, math.nan), "b": [{"c": math.inf}], 3: True, "d": None}
    assert finite(value) == {"a": [1.0, None], "b": [{"c": None}], "3": True, "d": None}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0.0123, "12.3 ms"),
        (3.44, "3.4 s"),
        (59.97, "1 min 00 s"),
        (125.4, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (14500.0, "4 h 02 min"),
        (100 * 3600.0, "4 d 04 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(None, "-"), (512, "512 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_size(num_bytes: float | None, text: str) -> None:
    assert size(num_bytes) == text


def test_number_rate_percent_and_counted() -> None:
    assert number(None) == "-"
    assert number(math.nan) == "nan"
    assert number(1234.567) == "1,234.57"
    assert rate(None) == "-"
    assert rate(8321.6) == "8,322"
    assert rate(15.26) == "15.3"
    assert percent(0.0271) == "2.7 %"
    assert [counted(n, "epoch") for n in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]


def test_interval_is_due() -> None:
    assert Every.parse("10 minutes") == Every(10, "minutes")
    assert [s for s in range(1, 10) if Every(3, "steps").due(s, 1e9)] == [3, 6, 9]
    assert not Every(1, "minutes").due(5, 59.0)
    assert Every(1, "minutes").due(5, 60.0)
    assert not Every(1, "epochs").due(5, 1e9)
    assert [e for e in range(1, 7) if Every(2, "epochs").due_epoch(e)] == [2, 4, 6]
    assert Every(7, "steps").due_epoch(1)
