"""One rank killed or stopped in a world of two or three: noticed, restarted, nothing lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.faults import ranks

FULL = os.environ.get("FAULTS") == "full"
long_form = pytest.mark.skipif(not FULL, reason="part of the long form: FAULTS=full")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux signals and /proc"),
]


def arguments(small_arguments: list[str], world_size: int) -> list[str]:
    """Six steps of 12 images, saved every two, in a world of ``world_size``."""
    changed = {
        "batch.per_device": 12 // world_size,
        "batch.global": 12,
        "schedule.epochs": 2,
    }
    kept = [a for a in small_arguments if not any(f"={key}=" in a for key in changed)]
    settings = [f"--set={key}={value}" for key, value in changed.items()]
    return [
        *kept,
        *settings,
        f"--set=platform.num_devices={world_size}",
        "--save-every=2 steps",
        "--training-only",
    ]


@pytest.fixture
def seen(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say what the fault did to the run: a row of the table of faults."""

    def tell(what: str) -> None:
        record_property("seen", what)
        record_property("times", 1)
        record_property("form", "full" if FULL else "short")

    return tell


@pytest.fixture(scope="module")
def undisturbed(
    image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[str], int], Path]:
    """The folder of the same run with nothing done to it, made once a world size."""
    made: dict[int, Path] = {}

    def run(command: list[str], world_size: int) -> Path:
        if world_size not in made:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            code, err = ranks.start(command, folder).finish()
            assert code == 0, err
            made[world_size] = folder
        return made[world_size]

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., object]]:
    """Start a job whose processes are all gone after the test, however it ends."""
    jobs = []

    def make(*args: object, **variables: str) -> object:
        jobs.append(ranks.start(*args, **variables))
        return jobs[-1]

    yield make
    for job in jobs:
        job.end()


@pytest.mark.parametrize(
    ("world_size", "rank", "number", "workers"),
    [
        (2, 0, signal.SIGKILL, 1),
        pytest.param(2, 1, signal.SIGSTOP, 0, marks=long_form),
        pytest.param(2, 1, signal.SIGKILL, 0, marks=long_form),
        pytest.param(3, 2, signal.SIGKILL, 1, marks=long_form),
        pytest.param(3, 0, signal.SIGSTOP, 1, marks=long_form),
        pytest.param(4, 3, signal.SIGKILL, 0, marks=long_form),
    ],
)
def test_a_lost_rank_costs_a_restart_and_nothing_else(
    small_arguments, undisturbed, start, seen, tmp_path, world_size, rank, number, workers
):
    """Kill -9 or SIGSTOP one rank of two to four, with --max-restarts 1."""
    command = arguments(small_arguments, world_size)
    whole = undisturbed(command, world_size)
    folder = tmp_path / "run"
    job = start(
        command,
        folder,
        "--max-restarts=1",
        "--collective-timeout-s=8",
        f"--set=data.workers={workers}",
    )
    job.wait_for("checkpoint", 2)
    os.kill(job.rank_pid(rank), number)
    code, err = job.finish()
    assert code == 0, err
    assert "Traceback" not in err, err
    job.assert_nobody_left()

    warnings = [r.values["message"] for r in ranks.records(folder, "warning")]
    told = [w for w in warnings if "restart 1 of at most 1" in w]
    assert len(told) == 1 and f"rank {rank}" in told[0]
    assert [line for line in err.splitlines() if line == f"warning: {told[0]}"]

    # From the newest checkpoint, not from the beginning.
    start_record = ranks.records(folder, "start")[-1]
    assert start_record.values["start_step"] >= 2 and start_record.values["resumed_from"]
    assert ranks.losses(folder) == ranks.losses(whole)
    expected, found = ranks.final_weights(whole), ranks.final_weights(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    seen("noticed, started again from the newest checkpoint, bit for bit, no process left")


def test_without_restarts_a_stopped_rank_is_one_line_that_names_it(
    small_arguments, start, seen, tmp_path
):
    """SIGSTOP one rank of two, without restarts."""
    job = start(arguments(small_arguments, 2), tmp_path / "run", "--collective-timeout-s=4")
    job.wait_for("step", 1)
    os.kill(job.rank_pid(1), signal.SIGSTOP)
    code, err = job.finish(timeout_s=60)
    assert code == 1, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "rank 1" in lines[0], err
    assert "Traceback" not in err, err
    job.assert_nobody_left()
    seen("one line that names the rank, exit 1, no process left")


def test_when_the_launcher_is_killed_its_ranks_end(small_arguments, start, seen, tmp_path):
    """Kill -9 the launcher, one of its ranks stopped."""
    command = [a.replace("epochs=2", "epochs=50") for a in arguments(small_arguments, 2)]
    job = start(command, tmp_path / "run", "--set=data.workers=1")
    job.wait_for("step", 1)
    # A stopped rank hears no signal but this one.
    os.kill(job.rank_pid(1), signal.SIGSTOP)
    os.kill(job.process.pid, signal.SIGKILL)
    job.process.wait()
    job.assert_nobody_left(within_s=15)
    seen("no process left")


@long_form
def test_a_users_mistake_is_not_tried_again(small_arguments, start, seen, tmp_path):
    """A missing checkpoint, with --max-restarts 3."""
    missing = tmp_path / "no-such-checkpoint"
    job = start(
        arguments(small_arguments, 2),
        tmp_path / "run",
        "--max-restarts=3",
        f"--resume={missing}",
    )
    code, err = job.finish()
    assert code == 2, err
    assert [line for line in err.splitlines() if line.strip()] == [
        line for line in err.splitlines() if line.startswith("error: ")
    ]
    assert str(missing) in err and "restart" not in err
    seen("refused once, exit 2")


@long_form
def test_one_process_is_restarted_too_and_keeps_its_end(small_arguments, start, seen, tmp_path):
    """Kill -9 the only rank, with --max-restarts 1.

    ``--run-epochs`` counts from the first start, not from the restart.
    """
    command = [a.replace("epochs=2", "epochs=4") for a in arguments(small_arguments, 1)]
    job = start(command, tmp_path / "run", "--max-restarts=1", "--run-epochs=2")
    job.wait_for("step", 4)
    os.kill(job.rank_pid(0), signal.SIGKILL)
    code, err = job.finish()
    assert code == 0, err
    assert ranks.records(tmp_path / "run", "end")[-1].step == 6
    seen("started again, ended where it was to")
