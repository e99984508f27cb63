"""The run's folder: created, refused, locked."""

import multiprocessing
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from image_classification.config.resolve import resolve
from image_classification.core.errors import WorkspaceError
from image_classification.launch.workspace import default_workspace, locked, prepare_workspace


@pytest.fixture
def config(tmp_path):
    found = resolve("resnet18", "FP32", "convergence", "CPU")
    return replace(found, run=replace(found.run, workspace=str(tmp_path / "run")))


def test_default_folder_name(config):
    name = default_workspace(config.names).name
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
    with pytest.raises(WorkspaceError, match="cannot make the run's folder"):
        prepare_workspace(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_unwritable_folder_is_one_error(config):
    Path(config.run.workspace).mkdir(mode=0o500)
    with pytest.raises(WorkspaceError, match="--workspace"):
        prepare_workspace(config)


def _try_to_lock(path, answers):
    try:
        with locked(path):
            answers.put("locked")
    except WorkspaceError as error:
        answers.put(error.message)


def test_second_job_in_one_folder_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with locked(tmp_path):
        process = context.Process(target=_try_to_lock, args=(tmp_path, answers))
        process.start()
        assert "in use by a running job" in answers.get(timeout=60)
        process.join()
    with locked(tmp_path):
        pass
