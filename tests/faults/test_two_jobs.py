"""Two jobs in one workspace, and a run resumed with other settings."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.jobs import FinalState


def test_second_job_in_a_workspace(
    jobs, long_arguments, reference_state, record_outcome, tmp_path
) -> None:
    """A second job is started in the workspace of a running one, new and with --resume auto."""
    folder = tmp_path / "run"
    first = jobs.start(long_arguments, folder, "--training-only", "--save-every=2 steps")
    first.wait_for_record("step", 2)
    (pid,) = first.pids
    os.kill(pid, signal.SIGSTOP)  # so that it does not end before the others start
    others = [
        jobs.start(long_arguments, folder),
        jobs.start(long_arguments, folder, "--resume=auto"),
    ]
    for other, why in zip(others, ("holds another run", "in use by a running job"), strict=True):
        assert other.wait() == 2
        (error,) = other.error_lines()
        assert str(folder) in error
        assert why in error
    os.kill(pid, signal.SIGCONT)
    assert first.wait() == 0, first.stderr
    expected = reference_state(long_arguments)
    FinalState.read(folder).assert_equal(expected)
    steps = [r.step for r in first.records() if r.kind == "step"]
    assert steps == list(range(1, expected.step + 1))
    record_outcome("second refused with one line; the first's weights are bit-equal", len(others))


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stopped") / "run"


CHANGES = {
    "model": {"--model=resnet18": "--model=resnet34"},
    "recipe": {"--set=optim.lr=0.02": "--set=optim.lr=0.05", "--mixup=0.2": "--mixup=0.3"},
    "seed": {"--mixup=0.2": "--mixup=0.2 --seed=9"},
    "classes": {"--set=model.num_classes=3": "--set=model.num_classes=4"},
    "data": {},
}
NAMED = {
    "model": ["model.name 'resnet18' -> 'resnet34'"],
    "recipe": ["optim.lr 0.02 -> 0.05", "mixing.mixup 0.2 -> 0.3"],
    "seed": ["run.seed ", "-> 9"],
    "classes": ["other class names than the model: cow", "rename the class folders"],
    "data": ["36 train images -> 28"],
}


@pytest.mark.parametrize("what", CHANGES)
def test_resumed_with_other_settings(
    jobs, jobs_of_session, arguments, image_folder, stopped_run, record_outcome, tmp_path, what
) -> None:
    """A run is resumed with another model, recipe, seed, number of classes or data set."""
    if not stopped_run.exists():
        jobs_of_session.run(arguments, stopped_run, "--training-only", "--set=run.max_steps=2")
    before = _content(stopped_run)
    changed = CHANGES[what]
    assert set(changed) <= set(arguments)
    arguments = " ".join(changed.get(a, a) for a in arguments).split(" ")
    if what in ("data", "classes"):
        smaller = tmp_path / "images"
        shutil.copytree(image_folder, smaller)
        if what == "classes":
            for split in ("train", "val"):
                shutil.copytree(smaller / split / "cat", smaller / split / "cow")
        else:
            for image in sorted((smaller / "train").rglob("*.JPEG"))[:8]:
                image.unlink()
        arguments = [str(smaller) if a == str(image_folder) else a for a in arguments]
    job = jobs.start(arguments, stopped_run, "--training-only", "--resume=auto")
    assert job.wait() == 2, job.stderr
    (error,) = job.error_lines()
    for part in (str(stopped_run), *NAMED[what]):
        assert part in error, error
    assert ("--allow-changes" in error) == (what not in ("model", "classes")), error
    assert _content(stopped_run) == before
    record_outcome("refused: one line names each difference, the run's folder is unchanged")


def _content(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p): p.read_bytes() for p in files}
