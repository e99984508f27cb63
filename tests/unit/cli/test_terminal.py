"""Real processes whose standard output goes away."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
NAMES = ["--model=resnet18", "--precision=FP32", "--mode=convergence", "--platform=CPU"]


def launch(line: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} {ROOT / 'launch.py'} {' '.join(NAMES)} {line}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_answer_that_cannot_be_written_is_one_line() -> None:
    done = launch("--explain > /dev/full")
    assert (done.returncode, done.stderr) == (
        2,
        "error: cannot write to standard output: No space left on device: send it elsewhere\n",
    )


def test_a_reader_that_has_enough_is_no_error() -> None:
    done = launch("--explain --json | head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_a_terminal_without_a_character_gets_a_question_mark() -> None:
    done = launch("--explain --workspace /tmp/é | PYTHONIOENCODING=utf-8 cat")
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
