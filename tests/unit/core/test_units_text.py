import math

import pytest

from image_classification.core.units import (
    duration,
    finite,
    number,
    percent,
    rate,
    size,
)


def test_finite_replaces_what_json_cannot_hold_at_any_depth():
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
def test_duration_uses_two_units_and_never_sixty(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(None, "-"), (512, "512 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_size_is_in_binary_units(num_bytes, text):
    assert size(num_bytes) == text


def test_numbers_for_people():
    assert number(None) == "-"
    assert number(math.nan) == "nan"
    assert number(1234.567) == "1,234.57"
    assert rate(None) == "-"
    assert rate(8321.6) == "8,322"
    assert rate(15.26) == "15.3"
    assert percent(0.0271) == "2.7 %"
