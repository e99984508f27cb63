"""Real runs to be disturbed: started as a user starts them, watched and cleaned up after.

``FAULTS=full`` in the environment (``make test-faults``) asks for the long form: more repetitions,
and jobs that are a fresh ``launch.py`` each. The short form forks jobs from a process that has the
imports behind it, and starts the ranks of a world by themselves, as Slurm does; so do most of the
long form's many kills.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.jobs import Jobs, Learnt, Zygote


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the long form was asked for."""
    return os.environ.get("FAULTS") == "full"


@pytest.fixture
def seen(record_property: Callable[[str, object], None], full: bool) -> Callable[[str, int], None]:
    """Say what a fault did to the run, and how many times it was tried: a row of the table."""

    def tell(what: str, times: int = 1) -> None:
        record_property("seen", what)
        record_property("times", times)
        record_property("form", "full" if full else "short")

    return tell


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def jobs_of_session(
    zygote: Zygote, full: bool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Jobs]:
    jobs = Jobs(zygote, tmp_path_factory.mktemp("jobs"), full)
    yield jobs
    jobs.close()


@pytest.fixture
def jobs(zygote: Zygote, full: bool, tmp_path: Path) -> Iterator[Jobs]:
    place = tmp_path / "jobs"
    place.mkdir()
    jobs = Jobs(zygote, place, full)
    yield jobs
    jobs.close()


@pytest.fixture
def arguments(small_arguments: list[str]) -> list[str]:
    """Eight steps of real training on one rank or two, with everything random in it."""
    changes = {"schedule.epochs": 2, "run.keep_checkpoints": 3}
    return [*small_arguments, "--mixup=0.2", *(f"--set={k}={v}" for k, v in changes.items())]


@pytest.fixture
def learnt() -> type[Learnt]:
    return Learnt


@pytest.fixture(scope="session")
def _undisturbed_runs() -> dict[tuple[str, ...], Learnt]:
    return {}


@pytest.fixture
def undisturbed(
    jobs_of_session: Jobs,
    tmp_path: Path,
    _undisturbed_runs: dict[tuple[str, ...], Learnt],
) -> Callable[..., Learnt]:
    """What the same command line learns when nothing happens; run once a session."""

    def get(arguments: Sequence[str], processes: int = 1) -> Learnt:
        key = (*arguments, str(processes))
        if key not in _undisturbed_runs:
            folder = tmp_path / "undisturbed"
            jobs_of_session.run(
                arguments, folder, "--training-only", "--save-every=99 epochs", processes=processes
            )
            _undisturbed_runs[key] = Learnt.of(folder)
        return _undisturbed_runs[key]

    return get
