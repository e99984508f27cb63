import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from image_classification.__main__ import main
from image_classification.config.resolve import resolve
from image_classification.core.errors import EXIT_REGRESSED, ConfigError, WorkspaceError
from tests.support import runs as made

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
    for name in ("combine", "compare", "history", "plots", "submit"):
        assert f"\n  {name} " in out
        with pytest.raises(SystemExit) as left:
            report(name, "--help")
        assert left.value.code == 0
    helps = capsys.readouterr().out
    assert "--threshold-top1 POINTS" in helps and "pictures.html" in helps


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "report: name a command"),
        (["histroy"], "unknown report command 'histroy'; did you mean 'history'"),
        (["combine", "a", "--open"], "--open shows combined.html: say with -o where"),
        (["plots", "a", "--open", "--format", "png"], "--open shows pictures.html, which"),
        (["combine"], "required: RUN: see .* report combine --help"),
        (["compare", "a"], "required: NEW"),
        (["compare", "a", "b", "--threshold-top1", "nan"], "'nan' is not a number of 0 or more"),
        (["history", "a", "--threshold-power", "-1"], "'-1' is not a number of 0 or more"),
        (["history", "a", "--ignore", "lr"], "--ignore: unknown key 'lr'; did you mean 'optim.lr'"),
    ],
)
def test_wrong_command_lines(arguments, words):
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


def test_combine_opens_its_page(two, tmp_path, capsys, monkeypatch):
    opened: dict[str, bool] = {}
    monkeypatch.setattr("webbrowser.open", lambda url: opened.setdefault(url, True))
    monkeypatch.setenv("BROWSER", "true")
    assert report("combine", two / "old", "-o", tmp_path / "out", "--open") == 0
    assert list(opened) == [(tmp_path / "out" / "combined.html").as_uri()]
    assert capsys.readouterr().err == f"opened {tmp_path / 'out' / 'combined.html'}\n"


def test_compare_and_history_write_pages(two, tmp_path, capsys, monkeypatch):
    opened: dict[str, bool] = {}
    monkeypatch.setattr("webbrowser.open", lambda url: opened.setdefault(url, True))
    monkeypatch.setenv("BROWSER", "true")
    out = tmp_path / "pages"
    compare = ("compare", two / "old", two / "new", "-o", out)
    assert report(*compare, "--open") == EXIT_REGRESSED
    assert report("history", two, "-o", out) == EXIT_REGRESSED
    assert report("compare", two, two, "-o", out / "folders") == 0
    names = {path.name for path in out.iterdir()}
    assert names == {f"{n}.{k}" for n in ("compare", "history") for k in ("html", "json")} | {
        "folders"
    }
    assert list(opened) == [(out / "compare.html").as_uri()]
    capsys.readouterr()
    report("history", two, "--json")
    assert json.loads(capsys.readouterr().out) == json.loads((out / "history.json").read_text())


def test_combine_into_an_unwritable_folder(two, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match=r"cannot make .*file: File exists; give another -o"):
        report("combine", two / "old", "-o", tmp_path / "file")


def test_compare_exits_with_4_after_a_regression(two, capsys):
    assert report("compare", two / "old", two / "new") == EXIT_REGRESSED == 4
    assert "training speed: -15.7 %, worse by more than 5 %" in capsys.readouterr().out
    assert report("compare", two / "new", two / "old") == 0
    assert "improved" in capsys.readouterr().out
    assert report("compare", two / "old", two / "new", "--threshold-throughput", "20") == 0
    capsys.readouterr()
    assert report("compare", two / "old", two / "new", "--json") == EXIT_REGRESSED
    assert json.loads(capsys.readouterr().out)["regressed"] == ["train_images_per_s"]


def test_history_exits_with_4_after_a_regression(two, capsys):
    assert report("history", two) == EXIT_REGRESSED
    assert "The newest run has regressed: resnet50 AMP" in capsys.readouterr().out
    assert report("history", two, "--threshold-throughput", "20", "--against", "previous") == 0
    assert "None of the newest runs has regressed." in capsys.readouterr().out
    assert report("history", two, "--json") == EXIT_REGRESSED
    assert len(json.loads(capsys.readouterr().out)["lines"][0]["runs"]) == 2


def test_user_errors_are_one_line_and_exit_2(two):
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


def test_a_closed_pipe_does_not_change_the_exit_code(two):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as gone:
        done = subprocess.run(
            [*REPORT, "history", str(two)], cwd=ROOT, stdout=gone, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == EXIT_REGRESSED and done.stderr == ""


def test_reports_import_neither_torch_nor_matplotlib(two):
    code = (
        "import sys; from image_classification.__main__ import main; "
        f"main(['report', 'combine', {str(two / 'old')!r}, '--json']); "
        f"main(['report', 'compare', {str(two / 'old')!r}, {str(two / 'new')!r}]); "
        f"main(['report', 'history', {str(two)!r}]); "
        f"main(['report', 'combine', {str(two / 'old')!r}, '-o', {str(two / 'out')!r}]); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not {"torch", "torchvision", "matplotlib", "numpy"} & loaded


def test_compare_folders_of_runs(tmp_path, record_run, run_results, capsys):
    record_run("old/a")
    record_run("new/a")
    assert report("compare", tmp_path / "old", tmp_path / "new") == 0
    assert "No figure of 1 run regressed." in capsys.readouterr().out
    record_run("new/b", precision="FP32", results=run_results(2000.0))
    record_run("old/b", precision="FP32", results=run_results(3000.0))
    assert report("compare", tmp_path / "old", tmp_path / "new", "--json") == EXIT_REGRESSED
    content = json.loads(capsys.readouterr().out)
    assert content["regressed"] == ["resnet50 FP32 convergence DGX1V 90e, 8 devices"]
    with pytest.raises(WorkspaceError, match=r"old/report\.json|name the folder"):
        report("compare", tmp_path / "old", tmp_path / "new" / "a")


@pytest.fixture
def run(tmp_path):
    config = resolve("resnet50", "AMP", "benchmark_inference", "DGX1V")
    return made.write_inference(tmp_path / "run", config)


@pytest.fixture
def other(tmp_path):
    config = resolve("resnet50", "FP32", "benchmark_inference", "DGX1V")
    return made.write_inference(tmp_path / "other", config, scale=2.0)


def test_plots_writes_into_the_folder_of_the_run(run, capsys):
    assert report("plots", run) == 0
    out = capsys.readouterr().out.splitlines()
    files = [run / "plots" / name for name in ("latency.png", "latency.svg", "pictures.html")]
    assert out == [str(path) for path in files]  # only the pictures that apply to the mode
    assert all(path.stat().st_size > 1000 for path in files)
    page = files[2].read_text()
    assert page.count("<svg") == 1 and "<title>Pictures of run</title>" in page


def test_plots_overlays_several_runs_in_the_given_folder(run, other, tmp_path, capsys):
    out = tmp_path / "out"
    assert report("plots", run, other / "report.json", "-o", out, "--format", "svg") == 0
    assert sorted(path.name for path in out.iterdir()) == ["latency.svg", "pictures.html"]
    drawn = (out / "latency.svg").read_text()
    assert "AMP, mean" in drawn and "FP32, mean" in drawn
    assert not (run / "plots").exists()


def test_plots_writes_no_page_for_png_alone(run, tmp_path, capsys):
    assert report("plots", run, "-o", tmp_path / "out", "--format=png") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["latency.png"]


def test_plots_writes_nothing_without_data(tmp_path, capsys):
    with made.Writer(tmp_path) as writer:
        writer.add("start", 0, 0)
    assert report("plots", tmp_path) == 0
    out = capsys.readouterr().out
    assert all(line.startswith("not drawn: ") for line in out.splitlines())
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["{run}", "{run}"], "pictures of 2 runs have no default folder: give one with -o"),
        (["{run}", "--format", "pgn"], "unknown picture format 'pgn'"),
        (["{run}", "--format", ","], "--format names no format: give png or svg"),
    ],
)
def test_wrong_command_lines_of_plots(run, arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        report("plots", *(argument.format(run=run) for argument in arguments))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["missing", 300 * "x"])
def test_runs_that_do_not_exist_and_names_that_are_too_long(tmp_path, name):
    with pytest.raises(WorkspaceError, match=f"{name} has neither report.json nor metrics"):
        report("plots", tmp_path / name)
    with pytest.raises(WorkspaceError, match=f"cannot read .*{name}"):
        report("compare", tmp_path / name, tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff\xfe\n", "cannot read"),
        (b'{"kind": "step"}\n', "is not a record of a run"),
        (b'{"kind": "step", "step": null, "epoch": 0, "values": {}}\n', "is not a record"),
        (b'{"kind": "step", "step": 1, "epoch": 0, "values": 3}\n', "is not a record"),
        (
            b'{"kind": "step", "step": 1, "epoch": 0, "values": {}, "timestamp": 5}\n',
            "is not a record",
        ),
    ],
)
def test_plots_of_damaged_records(tmp_path, line, message):
    (tmp_path / "metrics.jsonl").write_bytes(line)
    with pytest.raises(WorkspaceError, match=message) as caught:
        report("plots", tmp_path)
    assert "\n" not in caught.value.message


def test_submit_prints_the_row_and_the_entry(record_run, tmp_path, capsys):
    results = {
        "train": {"images_per_s": 8300.0, "epochs": 3.0, "steps": 1876, "images": 1876 * 2048},
        "starts": [{"step": 0, "changes": []}],
    }
    folder = record_run("run", mode="benchmark_training", results=results, data__path="/imagenet")
    assert report("submit", folder) == 0
    out = capsys.readouterr().out
    assert "| Tesla V100-SXM2-16GB | 8 | AMP | 256 | 8,300.0 |" in out
    assert "# Append to image_classification/reporting/published/published.yml, then run" in out
    assert report("submit", folder, "--yaml") == 0
    entry = capsys.readouterr().out
    assert entry.startswith("- id: measured-resnet50-dgx1v-x8-amp-90e-throughput-2026-01-05\n")
    assert out.endswith(entry)
    slow = record_run("slow", mode="benchmark_training", results={}, data__path="/imagenet")
    with pytest.raises(WorkspaceError, match="slow: it measured no training speed: train more"):
        report("submit", slow)
