import io
import shlex
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import pytest
from rich.console import Console

from image_classification.config.resolve import resolve
from image_classification.core.program import (
    LastingStdout,
    command,
    launch_words,
    next_command,
    open_page,
    shown_while,
)
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


def test_a_text_is_shown_during_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    with shown_while("loading"):
        assert terminal.getvalue() == "loading\r"
    assert terminal.getvalue() == "loading\r       \r"
    monkeypatch.setenv("RANK", "1")
    with shown_while("of a rank"):
        pass
    monkeypatch.setattr(sys, "stdout", pipe := io.StringIO())
    with shown_while("in a pipe"):
        pass
    assert "of a rank" not in terminal.getvalue() and pipe.getvalue() == ""


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


def test_next_commands_start_the_same_program_from_the_present_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", folder)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [str(ROOT / "launch.py"), "--list"])
    run = "runs/my run"
    assert next_command("launch", "--from", run) == "python launch.py --from 'runs/my run'"
    assert next_command("report", "history", "runs").startswith("python -m image_classification ")
    monkeypatch.setattr("sys.argv", ["/lib/image_classification/__main__.py", "launch"])
    assert next_command("launch", "x") == "python -m image_classification launch x"
    monkeypatch.setattr("sys.argv", ["/venv/bin/image-classification", "launch"])
    assert next_command("launch", "x") == "image-classification launch x"
    # From another folder, and with a Python that the shell does not find.
    monkeypatch.setattr("sys.argv", [str(ROOT / "launch.py")])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    for words in (("launch", "--list", "modes"), ("report", "--help")):
        done = subprocess.run(
            ["/bin/sh", "-c", next_command(*words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and done.stdout, done.stderr


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")


def test_a_page_is_opened_in_the_browser(tmp_path: Path) -> None:
    (tmp_path / "browser").write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/url\n')
    (tmp_path / "browser").chmod(0o755)
    page = tmp_path / "my report.html"
    code = f"""
from pathlib import Path
from image_classification.core.program import open_page
print(open_page(Path({str(page)!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"BROWSER": shlex.quote(str(tmp_path / "browser")), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"opened {page}\n"
    assert (tmp_path / "url").read_text() == page.as_uri()


@pytest.mark.parametrize(("kind", "why"), [("", "no display here"), ("docker", "in a container")])
def test_without_a_browser_the_page_is_named(
    kind: str, why: str, no_browser: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("image_classification.core.program.container_kind", lambda *_: kind)
    text = open_page(Path("runs/x/report.html"))
    assert why in text and text.endswith("; open it yourself: runs/x/report.html")
