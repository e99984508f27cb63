"""Where a restarted run continues, and which restarts are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from image_classification.core.errors import ConfigError, WorkspaceError
from image_classification.launch.outcomes import (
    OUTCOME_FOLDER,
    RESTART_REASON,
    keep_for_restart,
    kept_for_restart,
)
from image_classification.launch.restart import (
    apply_resume_point,
    check_restarts,
    find_resume_point,
)

UNDER_TORCHRUN = {"TORCHELASTIC_MAX_RESTARTS": "2", "TORCHELASTIC_RESTART_COUNT": "0"}


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """The environment of a process that launch.py has started."""
    folder = tmp_path / "outcomes"
    folder.mkdir()
    monkeypatch.setenv(OUTCOME_FOLDER, str(folder))
    monkeypatch.chdir(tmp_path)


def test_restart_continues_in_the_default_folder(launched, small_config):
    config = small_config()
    config = replace(config, run=replace(config.run, workspace=None))
    first = find_resume_point(config, 0)
    assert first.resume is None and first.run_epochs_from is None
    keep_for_restart("start_step", "0")
    keep_for_restart("start_step", "8")  # a later start's; the first one is kept
    (Path(first.workspace) / "metrics.jsonl").touch()
    second = find_resume_point(config, 1)
    assert second.workspace == first.workspace
    assert second.resume == "auto" and second.run_epochs_from == 0
    # For another run the folder is taken.
    taken = replace(config, run=replace(config.run, workspace=first.workspace))
    with pytest.raises(WorkspaceError, match="holds another run"):
        find_resume_point(taken, 0)


def test_restart_before_the_first_checkpoint_uses_the_given_one(launched, small_config):
    config = small_config(run__resume="/some/checkpoint")
    assert find_resume_point(config, 1).resume == "/some/checkpoint"
    saved = Path(config.run.workspace) / "checkpoints" / "step-0000000002"
    saved.mkdir(parents=True)
    (saved / "meta.json").touch()
    assert find_resume_point(config, 1).resume == "auto"


def test_restart_adds_a_warning(launched, small_config, monkeypatch):
    config = small_config()
    point = find_resume_point(config, 0)
    assert apply_resume_point(config, point, 0).warnings == config.warnings
    monkeypatch.setenv(RESTART_REASON, "rank 1 was killed (restart 1 of at most 2)")
    assert apply_resume_point(config, point, 1).warnings[-1] == (
        "rank 1 was killed (restart 1 of at most 2)"
    )
    monkeypatch.delenv(RESTART_REASON)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    assert "restart 1 of at most 2" in apply_resume_point(config, point, 1).warnings[-1]


@pytest.mark.parametrize(
    ("control", "environ", "message"),
    [
        ({"run__max_restarts": 1}, {}, "give the restarts to that one"),
        ({"run__workspace": None}, UNDER_TORCHRUN, "needs --workspace"),
        ({"run__run_epochs": 2}, UNDER_TORCHRUN, "give run.stop_epoch instead"),
    ],
)
def test_settings_that_another_launcher_would_break_are_refused(
    small_config, monkeypatch, control, environ, message
):
    monkeypatch.delenv(OUTCOME_FOLDER, raising=False)
    with pytest.raises(ConfigError, match=message):
        check_restarts(small_config(**control), environ)
    check_restarts(small_config(), UNDER_TORCHRUN)


def test_own_processes_may_restart(launched, small_config):
    check_restarts(small_config(run__max_restarts=1), {})
    assert kept_for_restart("never-said") is None
