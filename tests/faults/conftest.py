"""Fixtures of the fault tests: real runs that are started, disturbed and cleaned up.

``FAULTS=full`` in the environment (``make test-faults``) selects the long form: more repetitions,
and jobs that are a fresh ``launch.py`` each. The short form forks jobs from a process with its
imports done, and starts the ranks of a world without a launcher, as Slurm does; so do most of the
long form's many kills. The short form's networks are narrow, and its runs have more steps where a
fault must come before the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import STEM_CHANNELS
from tests.support.jobs import FinalState, Jobs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the long form is selected."""
    return os.environ.get("FAULTS") == "full"


@pytest.fixture(scope="session")
def stem_channels(full: bool) -> int | None:
    """Return the width of the short form's networks."""
    return None if full else STEM_CHANNELS


@pytest.fixture
def record_outcome(
    record_property: Callable[[str, object], None], full: bool
) -> Callable[..., None]:
    """Record what a fault did to the run and how often it was tried: a row of the fault table."""

    def record(outcome: str, times: int = 1) -> None:
        record_property("seen", outcome)
        record_property("times", times)
        record_property("form", "full" if full else "short")

    return record


@pytest.fixture(scope="session")
def jobs_of_session(
    full: bool, stem_channels: int | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path_factory.mktemp("jobs"), fresh=full, stem_channels=stem_channels)
    yield jobs
    jobs.close()


@pytest.fixture
def jobs(full: bool, stem_channels: int | None, tmp_path: Path) -> Iterator[Jobs]:
    log_folder = tmp_path / "jobs"
    log_folder.mkdir()
    jobs = Jobs(log_folder, fresh=full, stem_channels=stem_channels)
    yield jobs
    jobs.close()


@pytest.fixture
def arguments(small_arguments: list[str]) -> list[str]:
    """Eight steps of training on one or two ranks, with every kind of randomness in it."""
    changes = {"schedule.epochs": 2, "run.keep_checkpoints": 3}
    return [*small_arguments, "--mixup=0.2", *(f"--set={k}={v}" for k, v in changes.items())]


@pytest.fixture
def long_arguments(arguments: list[str], full: bool) -> list[str]:
    """The same with 48 steps in the short form, whose steps take about 30 ms."""
    return arguments if full else [*arguments, "--set=schedule.epochs=12"]


@pytest.fixture(scope="session")
def _reference_states() -> dict[tuple[str, ...], FinalState]:
    return {}


@pytest.fixture
def reference_state(
    jobs_of_session: Jobs,
    tmp_path: Path,
    _reference_states: dict[tuple[str, ...], FinalState],
) -> Callable[..., FinalState]:
    """Return the final state of an undisturbed run of a command line; run once per session."""

    def get(arguments: Sequence[str], processes: int = 1) -> FinalState:
        key = (*arguments, str(processes))
        if key not in _reference_states:
            folder = tmp_path / "reference"
            jobs_of_session.run(
                arguments, folder, "--training-only", "--save-every=99 epochs", processes=processes
            )
            _reference_states[key] = FinalState.read(folder)
        return _reference_states[key]

    return get
