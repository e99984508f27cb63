import pytest

from image_classification.cli.report import main as report
from image_classification.cli.report import usage
from image_classification.cli.report_plots import main
from image_classification.config.resolve import resolve
from image_classification.core.errors import ConfigError, WorkspaceError
from tests.support import runs as made


@pytest.fixture
def run(tmp_path):
    config = resolve("resnet50", "AMP", "benchmark_inference", "DGX1V")
    return made.write_inference(tmp_path / "run", config)


@pytest.fixture
def other(tmp_path):
    config = resolve("resnet50", "FP32", "benchmark_inference", "DGX1V")
    return made.write_inference(tmp_path / "other", config, scale=2.0)


def test_the_pictures_of_a_run_go_into_its_folder(run, capsys):
    assert main([str(run)]) == 0
    out = capsys.readouterr().out.splitlines()
    files = [run / "plots" / name for name in ("latency.png", "latency.svg", "pictures.html")]
    assert out[:3] == [str(path) for path in files]
    assert all(path.stat().st_size > 1000 for path in files)
    assert "not drawn: Loss: no loss was recorded" in out
    page = files[2].read_text()
    assert page.count("<svg") == 1 and "<title>Pictures of run</title>" in page


def test_several_runs_are_overlaid_in_the_folder_named(run, other, tmp_path, capsys):
    out = tmp_path / "out"
    report = other / "report.json"
    assert main([str(run), str(report), "-o", str(out), "--format", "svg"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["latency.svg", "pictures.html"]
    drawn = (out / "latency.svg").read_text()
    assert "AMP, mean" in drawn and "FP32, mean" in drawn
    assert not (run / "plots").exists()


def test_png_alone_needs_no_page(run, tmp_path, capsys):
    assert main([str(run), "-o", str(tmp_path / "out"), "--format=png"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["latency.png"]


def test_a_run_with_nothing_to_draw_writes_nothing(tmp_path, capsys):
    with made.Writer(tmp_path) as writer:
        writer.add("start", 0, 0)
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(line.startswith("not drawn: ") for line in out.splitlines())
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: RUN"),
        (["{run}", "{run}"], "pictures of 2 runs have no folder of their own: name one, -o"),
        (["{run}", "--format", "pgn"], "unknown picture format 'pgn'"),
        (["{run}", "--format", ","], "--format names no format: choose of png, svg"),
    ],
)
def test_a_command_line_that_cannot_be_understood(run, arguments, said):
    with pytest.raises(ConfigError, match=said) as caught:
        main([argument.format(run=run) for argument in arguments])
    assert "\n" not in caught.value.message


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(WorkspaceError, match=r"missing has neither report.json nor metrics"):
        main([str(tmp_path / "missing")])


@pytest.mark.parametrize(
    ("line", "said"),
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
def test_a_damaged_file_is_one_clear_line(tmp_path, line, said):
    (tmp_path / "metrics.jsonl").write_bytes(line)
    with pytest.raises(WorkspaceError, match=said) as caught:
        main([str(tmp_path)])
    assert "\n" not in caught.value.message


def test_report_knows_plots(run, capsys):
    assert report(["plots", str(run), "--format", "png"]) == 0
    assert "latency.png" in capsys.readouterr().out
    assert "plots" in usage()


def test_matplotlib_is_not_loaded_before_something_is_drawn(run):
    import subprocess
    import sys

    code = (
        "import sys, image_classification.cli.report_plots; "
        "print(sorted({'matplotlib', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
