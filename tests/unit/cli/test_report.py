import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from image_classification.__main__ import main
from image_classification.core.errors import EXIT_REGRESSED, ConfigError, WorkspaceError

ROOT = Path(__file__).parents[3]
REPORT = [sys.executable, "-m", "image_classification", "report"]


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


@pytest.fixture
def two(record_run, run_results):
    """A run and a slower one of the same name, and their folder."""
    record_run("runs/old", ended_at=1)
    record_run("runs/new", ended_at=2, seed=1, results=run_results(7000.0))
    return record_run("other", precision="FP32").parent / "runs"


def test_help_lists_every_command(capsys):
    assert report("--help") == 0
    out = capsys.readouterr().out
    for name in ("combine", "compare", "history"):
        assert f"\n  {name} " in out
        with pytest.raises(SystemExit) as left:
            report(name, "--help")
        assert left.value.code == 0
    assert "--threshold-top1 POINTS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "report: name what to do"),
        (["histroy"], "unknown report command 'histroy'; did you mean 'history'"),
        (["combine"], "required: RUN: see .* report combine --help"),
        (["compare", "a"], "required: NEW"),
        (["compare", "a", "b", "--threshold-top1", "nan"], "'nan' is not a number of 0 or more"),
        (["history", "a", "--threshold-power", "-1"], "'-1' is not a number of 0 or more"),
        (["history", "a", "--ignore", "lr"], "--ignore: unknown key 'lr'; did you mean 'optim.lr'"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, words):
    with pytest.raises(ConfigError, match=words):
        report(*arguments)


def test_combine_prints_and_writes(two, tmp_path, capsys):
    out = tmp_path / "new" / "combined"
    assert report("combine", two / "old", two / "new", "-o", out) == 0
    printed = capsys.readouterr().out
    assert "8 devices, 2 runs" in printed and "Vendor table" not in printed
    assert sorted(path.name for path in out.iterdir()) == ["combined.html", "combined.json"]
    content = json.loads((out / "combined.json").read_text())
    assert content["groups"][0]["figures"]["train_images_per_s"]["mean"] == 7650.0
    assert report("combine", two / "old", two / "new", "--json") == 0
    assert json.loads(capsys.readouterr().out) == content
    assert report("combine", two / "old", "--vendor") == 0
    assert "Vendor table" in capsys.readouterr().out


def test_combine_says_where_it_cannot_write(two, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match=r"cannot make .*file: File exists; give another -o"):
        report("combine", two / "old", "-o", tmp_path / "file")


def test_compare_ends_with_its_own_code(two, capsys):
    assert report("compare", two / "old", two / "new") == EXIT_REGRESSED == 4
    assert "training speed: -15.7 %, worse by more than 5 %" in capsys.readouterr().out
    assert report("compare", two / "new", two / "old") == 0
    assert "improved" in capsys.readouterr().out
    assert report("compare", two / "old", two / "new", "--threshold-throughput", "20") == 0
    capsys.readouterr()
    assert report("compare", two / "old", two / "new", "--json") == EXIT_REGRESSED
    assert json.loads(capsys.readouterr().out)["regressed"] == ["train_images_per_s"]


def test_history_ends_with_its_own_code(two, capsys):
    assert report("history", two) == EXIT_REGRESSED
    assert "The newest run has regressed: resnet50 AMP" in capsys.readouterr().out
    assert report("history", two, "--threshold-throughput", "20", "--against", "previous") == 0
    assert "No newest run has regressed." in capsys.readouterr().out
    assert report("history", two, "--json") == EXIT_REGRESSED
    assert len(json.loads(capsys.readouterr().out)["lines"][0]["runs"]) == 2


def test_a_mistake_is_one_line_and_exit_2(two):
    other = two.parent / "other"
    done = subprocess.run(
        [*REPORT, "compare", str(two / "old"), str(other)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "precision AMP -> FP32" in done.stderr


def test_a_reader_that_goes_away_changes_no_exit_code(two):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as gone:
        done = subprocess.run(
            [*REPORT, "history", str(two)], cwd=ROOT, stdout=gone, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == EXIT_REGRESSED and done.stderr == ""


def test_no_command_imports_torch_or_draws(two):
    code = (
        "import sys; from image_classification.__main__ import main; "
        f"main(['report', 'combine', {str(two / 'old')!r}, '--json']); "
        f"main(['report', 'compare', {str(two / 'old')!r}, {str(two / 'new')!r}]); "
        f"main(['report', 'history', {str(two)!r}]); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not {"torch", "torchvision", "matplotlib", "numpy"} & loaded


def test_compare_takes_folders_of_runs(tmp_path, record_run, run_results, capsys):
    record_run("old/a")
    record_run("new/a")
    assert report("compare", tmp_path / "old", tmp_path / "new") == 0
    assert "No figure of 1 run regressed." in capsys.readouterr().out
    record_run("new/b", precision="FP32", results=run_results(2000.0))
    record_run("old/b", precision="FP32", results=run_results(3000.0))
    assert report("compare", tmp_path / "old", tmp_path / "new", "--json") == EXIT_REGRESSED
    told = json.loads(capsys.readouterr().out)
    assert told["regressed"] == ["resnet50 FP32 convergence DGX1V 90e, 8 devices"]
    with pytest.raises(WorkspaceError, match=r"old/report\.json|name the folder"):
        report("compare", tmp_path / "old", tmp_path / "new" / "a")
