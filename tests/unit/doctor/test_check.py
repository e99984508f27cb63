import pytest

from image_classification.core.units import size_text
from image_classification.doctor.check import (
    Check,
    fail,
    ok,
    overall,
    skipped,
    warn,
)


def test_the_worst_line_is_the_whole() -> None:
    fine, odd, bad = ok("a", "1"), warn("b", "2", "mend it"), fail("c", "3", "mend it")
    assert overall([]) == "ok"
    assert overall([fine, skipped("d", "no GPU")]) == "ok"
    assert overall([fine, odd]) == "warn"
    assert overall([odd, bad, fine]) == "fail"


@pytest.mark.parametrize("status", ["warn", "fail"])
def test_what_is_wrong_needs_a_remedy(status: str) -> None:
    with pytest.raises(ValueError, match="remedy"):
        Check("disk", status, "full")


def test_there_is_no_fifth_status() -> None:
    with pytest.raises(ValueError, match="good"):
        Check("disk", "good", "empty")


def test_sizes() -> None:
    assert [size_text(n) for n in (0, 1023, 1024, 64 * 2**20, 5 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "64.0 MiB",
        "5.0 TiB",
    ]
