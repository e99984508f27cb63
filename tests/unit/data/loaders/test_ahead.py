import threading
from collections.abc import Generator

import pytest
import torch

from image_classification.data.loaders.workers import Ahead, single_thread_pool


def test_items_come_in_order_and_end_once() -> None:
    running = Ahead((i for i in range(20)), depth=3)
    assert list(running) == list(range(20))
    assert list(running) == []


def test_it_runs_ahead_by_its_depth_and_no_further() -> None:
    made: list[int] = []
    reached = threading.Event()

    def items() -> Generator[int, None, None]:
        for i in range(10):
            made.append(i)
            if i == 2:  # two wait in the queue, this one for a place
                reached.set()
            yield i

    running = Ahead(items(), depth=2)
    assert reached.wait(10)
    assert made == [0, 1, 2]
    assert next(running) == 0
    running.stop()


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    running = Ahead(items(), depth=4)
    assert next(running) == 1
    with pytest.raises(ValueError, match="broken"):
        next(running)
    assert list(running) == []


def test_stop_closes_the_items_and_may_be_called_twice() -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    running = Ahead(items(), depth=1)
    assert next(running) == 0
    running.stop()
    running.stop()
    assert closed.is_set()
    assert threading.active_count() == before
    assert list(running) == []


def test_the_pool_computes_on_one_thread_each_and_the_caller_on_its_own_number() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        pool = single_thread_pool(2)
        assert {pool.submit(torch.get_num_threads).result() for _ in range(8)} == {1}
        assert torch.get_num_threads() == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
        pool.shutdown()
    finally:
        torch.set_num_threads(before)
