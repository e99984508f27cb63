from datetime import datetime, timezone

from image_classification.doctor.host import Instant, check_clock

NOON = datetime(2026, 10, 1, 12, tzinfo=timezone.utc).timestamp()


def test_a_steady_clock() -> None:
    clock, offset = check_clock(Instant(NOON, 50.0), Instant(NOON + 8.001, 58.0))
    assert clock.status == "ok"
    assert clock.found == ("2026-10-01 12:00:08 UTC; +1.0 ms against the monotonic clock in 8.0 s")
    assert offset.status == "skipped" and "not measured" in offset.found


def test_a_clock_that_was_stepped() -> None:
    clock, _ = check_clock(Instant(NOON, 50.0), Instant(NOON - 3600.0, 58.0))
    assert clock.status == "warn" and "-3608000.0 ms" in clock.found


def test_a_clock_that_was_never_set() -> None:
    clock, _ = check_clock(Instant(100.0, 100.0), Instant(108.0, 108.0))
    assert clock.status == "fail" and clock.found.startswith("1970-01-01")


def test_now() -> None:
    first, second = Instant.now(), Instant.now()
    assert second.monotonic_s >= first.monotonic_s and first.wall_s > NOON / 2
