"""Signals become a question asked at step boundaries."""

import os
import signal

import pytest

from image_classification.engine.stop import STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_recorded(number):
    with StopRequest() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.signal_name == signal.Signals(number).name


def test_previous_handlers_are_restored():
    before = [signal.getsignal(n) for n in STOP_SIGNALS]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before


def test_signal_to_another_rank_is_a_request():
    with StopRequest(any_rank=lambda mine: True) as stop:
        assert stop.requested()
        assert stop.signal_name is None
