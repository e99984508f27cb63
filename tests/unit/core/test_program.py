import io
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import pytest
from rich.console import Console

from image_classification.config.resolve import resolve
from image_classification.core.program import LastingStdout, command, launch_words
from image_classification.core.types import Activity, Record
from image_classification.reporting.console import open_console_sink

ROOT = Path(__file__).parents[3]
NAMES = ["--model=resnet18", "--precision=FP32", "--mode=convergence", "--platform=CPU"]


def run_launch(line: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} {ROOT / 'launch.py'} {' '.join(NAMES)} {line}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_full_disk_is_an_error_of_one_line() -> None:
    done = run_launch("--explain > /dev/full")
    assert (done.returncode, done.stderr) == (
        2,
        "error: cannot write to standard output: No space left on device: send it elsewhere\n",
    )


def test_a_reader_that_ends_early_is_not_an_error() -> None:
    done = run_launch("--explain --json | head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_characters_that_the_encoding_lacks_are_replaced() -> None:
    done = run_launch("--explain --workspace /tmp/é | PYTHONIOENCODING=utf-8 cat")
    assert "/tmp/é" in done.stdout
    command = f"PYTHONIOENCODING=ascii {sys.executable} {ROOT / 'launch.py'} {' '.join(NAMES)}"
    done = subprocess.run(
        ["bash", "-c", f"{command} --explain --workspace /tmp/é"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "/tmp/?" in done.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_view_and_other_prints_reach_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    console = Console(file=cast(IO[str], LastingStdout()), width=80)
    sink = open_console_sink(console, resolve("resnet18", "FP32", "convergence", "CPU"), Activity())
    sink.write(Record("start", 0, 0, {"total_steps": 8, "epochs": 2, "steps_per_epoch": 4}))
    sink.write(Record("step", 4, 0, {"loss": 1.25}))
    # Printing a line redraws the live display.
    print("a library's line")
    sink.close()
    shown = terminal.getvalue()
    assert "a library's line\n" in shown
    assert "epoch 1/2" in shown
    assert "loss 1.2500" in shown
    assert sys.stdout is terminal


AS_MODULE = ("-m", "image_classification", "launch")


@pytest.mark.parametrize(
    ("started_as", "launch", "report", "words"),
    [
        ("./launch.py", "launch.py", "python -m image_classification report", ("./launch.py",)),
        (
            "/venv/bin/image-classification",
            "image-classification launch",
            "image-classification report",
            AS_MODULE,
        ),
        (
            "/lib/image_classification/__main__.py",
            "python -m image_classification launch",
            "python -m image_classification report",
            AS_MODULE,
        ),
    ],
)
def test_commands_fit_how_the_program_was_started(
    started_as: str,
    launch: str,
    report: str,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", [started_as, "--list"])
    assert (command("launch"), command("report"), launch_words()) == (launch, report, words)
