import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_classification.cli import doctor
from image_classification.cli.doctor import main
from image_classification.core.errors import ConfigError
from image_classification.doctor.checks import Context
from image_classification.doctor.report import CheckResult, fail, ok, warn

ROOT = Path(__file__).parents[3]
DOCTOR = [sys.executable, "-m", "image_classification", "doctor"]


@pytest.mark.slow
def test_cpu_machine_from_end_to_end(tmp_path: Path) -> None:
    arguments = ["--platform", "CPU", "--json", "--workspace", str(tmp_path / "runs")]
    out = subprocess.run([*DOCTOR, *arguments], cwd=ROOT, capture_output=True, text=True)
    content = json.loads(out.stdout)
    by_name = {check["name"]: check for check in content["checks"]}
    assert len(by_name) == len(content["checks"])
    measured = {
        *("python", "torch", "torchvision", "pillow", "platform", "gloo"),
        *("shared-memory", "memory", "open-files", "locked-memory", "stack", "processes"),
        *("core-files", "cpus", "omp-threads", "file-system", "disk-space", "disk-speed"),
        *("data-set", "data-sample", "container", "user", "home", "clock"),
    }
    assert not [name for name in measured if by_name[name]["status"] in ("fail", "skipped")]
    skipped = {"driver", "gpus", "gpu-kernels", "dali", "nccl", "gpu-affinity", "clock-offset"}
    assert measured | skipped | {"nvidia-ml-py", "apex", "numa"} <= by_name.keys()
    assert "50 of 50 train images decoded" in by_name["data-sample"]["found"]
    assert "MB/s" in by_name["gloo"]["found"]
    assert by_name["clock-offset"]["status"] == "skipped"
    assert out.returncode == (2 if content["status"] == "fail" else 0)
    assert out.stderr == "" and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_the_doctor_and_its_processes(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*DOCTOR, "--workspace", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ok      python")
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and "Traceback" not in err
    deadline_s = time.monotonic() + 30
    while _group_exists(process.pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--platform", "DGX1W"], r"unknown platform 'DGX1W'; did you mean 'DGX1V'"),
        (["--platfrom", "CPU"], "--help"),
        (["CPU"], "--help"),
    ],
)
def test_invalid_command_line(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        main(argv)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--platform", "--data", "--workspace", "--json"))


@pytest.mark.parametrize(
    ("result", "code"),
    [(ok("a", "1"), 0), (warn("a", "1", "change it"), 0), (fail("a", "1", "change it"), 2)],
)
def test_only_a_failure_exits_with_2(
    result: CheckResult,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_checks(context: Context) -> Iterator[CheckResult]:
        yield result

    monkeypatch.setattr(doctor, "run_checks", run_checks)
    assert main([]) == code
    first, empty, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{result.status:<7} a") and empty == "" and "skipped" in last
    assert main(["--json"]) == code
    assert json.loads(capsys.readouterr().out)["status"] == result.status


def test_closed_pipe_does_not_change_the_exit_code() -> None:
    code = (
        "import sys\n"
        "from image_classification.cli import doctor\n"
        "from image_classification.doctor.report import fail\n"
        "doctor.run_checks = lambda context: (fail('a', 'x' * 9999, 'y') for _ in range(99))\n"
        "sys.exit(doctor.main([]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == 2
