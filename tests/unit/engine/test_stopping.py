"""Signals become a question asked at step boundaries."""

import os
import signal

import pytest

from image_classification.engine.stop import STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_not_died_of(number):
    with StopRequest() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.signal_name == signal.Signals(number).name


def test_the_previous_handlers_come_back():
    before = [signal.getsignal(n) for n in STOP_SIGNALS]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before


def test_another_ranks_signal_stops_this_one():
    with StopRequest(agree=lambda mine: True) as stop:
        assert stop.requested()
        assert stop.signal_name is None
