import os
import signal

import pytest

from image_classification.core.errors import DataError
from image_classification.data.tools.parallel import default_workers, run_parallel


def test_results_are_in_the_order_of_the_tasks() -> None:
    assert list(run_parallel(pow, 2, [3, 1, 2], workers=0)) == [8, 2, 4]
    assert list(run_parallel(pow, 2, [], workers=2)) == []
    assert default_workers() >= 1


@pytest.mark.slow
def test_worker_processes_return_results_and_raise_errors() -> None:
    tasks = list(range(40))
    assert list(run_parallel(pow, 2, tasks, workers=2)) == [2**n for n in tasks]
    with pytest.raises(ZeroDivisionError):
        list(run_parallel(pow, 0, [1, -1, 3], workers=2))


@pytest.mark.slow
def test_a_worker_that_dies_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"a worker process died.* --workers"):
        list(run_parallel(_kill, None, [signal.SIGKILL], workers=1))


def _kill(shared: None, number: int) -> None:
    os.kill(os.getpid(), number)
