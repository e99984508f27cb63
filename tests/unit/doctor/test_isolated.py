import os
import signal
import time

import pytest

from image_classification.core.errors import DataError
from image_classification.doctor.probe import (
    Call,
    IsolatedError,
    call,
    call_together,
    one_line,
)


def test_a_result_comes_back() -> None:
    assert call("math:hypot", 3.0, 4.0, limit_s=60) == 5.0
    assert os.getpid() not in call_together([Call("os:getpid"), Call("os:getpid")], 60)


def test_what_is_raised_is_one_line() -> None:
    with pytest.raises(IsolatedError, match=r"FileNotFoundError: .*no such") as raised:
        call("os:listdir", "/no such", limit_s=60)
    assert not raised.value.is_late and not raised.value.is_user_error


def test_a_users_error_keeps_its_words() -> None:
    with pytest.raises(IsolatedError, match=r"^no data set at /no such: give") as raised:
        call(
            "image_classification.data.formats.folder:has_split",
            _path("/no such"),
            "val",
            limit_s=60,
        )
    assert raised.value.is_user_error


def _path(text: str) -> object:
    from pathlib import Path

    return Path(text)


def test_a_crash_names_its_signal_and_what_was_printed_last(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(IsolatedError, match=r"^crashed with SIGSEGV"):
        call("faulthandler:_sigsegv", limit_s=60)
    with pytest.raises(IsolatedError, match=r"^crashed with SIGABRT: \S"):
        call("faulthandler:_fatal_error_c_thread", limit_s=60)
    assert capfd.readouterr() == ("", "")


def test_a_hang_ends_at_its_limit_with_its_companions() -> None:
    start = time.monotonic()
    with pytest.raises(IsolatedError, match=r"no answer within 0\.5 s") as raised:
        call_together([Call("time:sleep", (600,)), Call("math:sqrt", (4.0,))], 0.5)
    assert raised.value.is_late and time.monotonic() - start < 60


def test_the_first_failure_ends_those_that_would_wait() -> None:
    start = time.monotonic()
    with pytest.raises(IsolatedError, match="ValueError"):
        call_together([Call("time:sleep", (600,)), Call("math:sqrt", (-1.0,))], 300)
    assert time.monotonic() - start < 60


def test_an_exit_without_an_answer() -> None:
    with pytest.raises(IsolatedError, match="ended with exit code 7"):
        call("os:_exit", 7, limit_s=60)
    with pytest.raises(IsolatedError, match="crashed with SIGKILL"):
        call("signal:raise_signal", signal.SIGKILL, limit_s=60)


def test_one_line() -> None:
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(DataError("a  b")) == "DataError: a b"
