"""The run's folder: created, refused, locked; and where a restarted run continues."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from image_classification.config.resolve import resolve
from image_classification.core.errors import ConfigError, WorkspaceError
from image_classification.launch.outcomes import OUTCOME_FOLDER, RESTART_REASON, keep_for_restart
from image_classification.launch.workspace import (
    ResumePoint,
    apply_resume_point,
    check_restarts,
    find_resume_point,
    locked,
    prepare_workspace,
)


@pytest.fixture
def config(tmp_path):
    found = resolve("resnet18", "FP32", "convergence", "CPU")
    return replace(found, run=replace(found.run, workspace=str(tmp_path / "run")))


def test_default_folder_name(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = prepare_workspace(replace(config, run=replace(config.run, workspace=None))).name
    assert re.fullmatch(r"resnet18-CPU-FP32-.*convergence-\d{8}T\d{6}Z", name)


def test_two_runs_in_one_second_get_two_folders(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unnamed = replace(config, run=replace(config.run, workspace=None))
    first, second = prepare_workspace(unnamed), prepare_workspace(unnamed)
    assert first != second


def test_folder_of_another_run_is_refused_and_unchanged(config):
    path = prepare_workspace(config)
    (path / "report.json").write_text("kept")
    with pytest.raises(WorkspaceError, match=r"holds another run.*--resume auto"):
        prepare_workspace(config)
    assert (path / "report.json").read_text() == "kept"


def test_resuming_continues_in_the_folder(config):
    path = prepare_workspace(config)
    (path / "metrics.jsonl").write_text("")
    resumed = replace(config, run=replace(config.run, resume="auto"))
    assert prepare_workspace(resumed) == path


def test_file_instead_of_folder_is_one_error(config):
    Path(config.run.workspace).write_text("")
    with pytest.raises(WorkspaceError, match="cannot create the run's folder"):
        prepare_workspace(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_unwritable_folder_is_one_error(config):
    Path(config.run.workspace).mkdir(mode=0o500)
    with pytest.raises(WorkspaceError, match="--workspace"):
        prepare_workspace(config)


def test_second_job_in_one_folder_is_refused(tmp_path):
    with locked(tmp_path):
        with pytest.raises(WorkspaceError, match="in use by a running job"), locked(tmp_path):
            pass
        with pytest.raises(WorkspaceError, match=f'"pid": {os.getpid()}'), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


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


def test_restart_continues_from_the_newest_checkpoint_not_the_chosen_one(small_config):
    config = small_config(run__resume="auto", run__checkpoint="4")
    point = ResumePoint(config.run.workspace, "auto", None)
    assert apply_resume_point(config, point, 0).run.checkpoint == "4"
    assert apply_resume_point(config, point, 1).run.checkpoint is None


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
