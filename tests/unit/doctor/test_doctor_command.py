import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

from image_classification.cli.doctor import main
from image_classification.core.errors import ConfigError
from image_classification.doctor import checks as checkup_data
from image_classification.doctor import checks as checkup_module
from image_classification.doctor.check import (
    Check,
    fail,
    ok,
    warn,
)
from image_classification.doctor.checks import Asked, Checkup, guarded
from image_classification.doctor.gpu import Gpu, TorchGpus
from image_classification.doctor.probe import Call, IsolatedError
from image_classification.doctor.requirements import platform_needs

ROOT = Path(__file__).parents[3]
DOCTOR = [sys.executable, "-m", "image_classification", "doctor"]

without_gpu = pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU here")


def replace_run(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    def run(self: Checkup) -> Iterator[Check]:
        yield from checks

    monkeypatch.setattr(Checkup, "run", run)


@pytest.mark.slow
def test_a_cpu_machine_from_end_to_end(tmp_path: Path) -> None:
    arguments = ["--platform", "CPU", "--json", "--workspace", str(tmp_path / "runs")]
    out = subprocess.run([*DOCTOR, *arguments], cwd=ROOT, capture_output=True, text=True)
    content = json.loads(out.stdout)
    by_name = {check["name"]: check for check in content["checks"]}
    assert len(by_name) == len(content["checks"])
    measured = {
        *("python", "torch", "torchvision", "pillow", "platform", "dali-cpu", "gloo"),
        *("shared-memory", "memory", "open-files", "locked-memory", "stack", "processes"),
        *("core-files", "cpus", "omp-threads", "file-system", "disk-space", "disk-speed"),
        *("data-set", "data-sample", "container", "user", "home", "clock"),
    }
    assert {name for name in measured if by_name[name]["status"] in ("fail", "skipped")} <= {
        "dali-cpu"  # an extra
    }
    assert "50 of 50 train images decoded" in by_name["data-sample"]["found"]
    assert "MB/s" in by_name["gloo"]["found"]
    assert by_name["clock-offset"]["status"] == "skipped"
    assert out.returncode == (2 if content["status"] == "fail" else 0)
    assert out.stderr == "" and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_it_and_its_processes(tmp_path: Path) -> None:
    arguments = ["--workspace", str(tmp_path)]
    doctor = subprocess.Popen(
        [*DOCTOR, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert doctor.stdout is not None
    assert doctor.stdout.readline().startswith("ok      python")
    time.sleep(0.5)
    os.killpg(doctor.pid, signal.SIGINT)
    _, err = doctor.communicate(timeout=60)
    assert doctor.returncode == -signal.SIGINT and "Traceback" not in err
    deadline = time.monotonic() + 30
    while _group_lives(doctor.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--platform", "DGX1"], r"unknown platform 'DGX1'; did you mean 'DGX1V'"),
        (["--platfrom", "CPU"], "--help"),
        (["CPU"], "--help"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_looked_at(
    argv: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        main(argv)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--platform", "--data", "--workspace", "--json"))


@pytest.mark.parametrize(
    ("check", "code"),
    [(ok("a", "1"), 0), (warn("a", "1", "mend it"), 0), (fail("a", "1", "mend it"), 2)],
)
def test_only_a_failure_exits_with_2(
    check: Check, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_run(monkeypatch, check)
    assert main([]) == code
    first, empty, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{check.status:<7} a") and empty == "" and "skipped" in last
    assert main(["--json"]) == code
    assert json.loads(capsys.readouterr().out)["status"] == check.status


def test_a_check_that_raises_is_a_line_and_the_next_go_on() -> None:
    def broken() -> Iterable[Check]:
        yield ok("first", "1")
        raise ZeroDivisionError("division by zero\nin the third line")

    first, failed = guarded("disk", broken)
    assert first.status == "ok"
    assert (failed.name, failed.status) == ("disk", "fail")
    assert failed.found == "the check itself failed: ZeroDivisionError: division by zero"


@pytest.mark.slow
@without_gpu
@pytest.mark.parametrize("platform", ["DGX1V", "GAUDI"])
def test_a_platform_that_is_not_here(platform: str) -> None:
    visit = Checkup(Asked(platform))
    checks = {check.name: check for check in visit.devices()}
    checks |= {check.name: check for check in visit.platform()}
    if platform == "GAUDI":
        assert checks["platform"].status == "fail" and "hpu" in checks["platform"].found
    else:
        assert checks["gpus"].status == "fail" and "8 x V100" in checks["gpus"].found
        assert checks["platform"].status == "ok"


def test_three_gpus_make_no_batch_of_the_published_size() -> None:
    visit = Checkup(Asked("DGX1V"))
    visit.gpus = TorchGpus("2.10.0", "12.8", ("sm_70",), (Gpu("Tesla V100-SXM2-16GB", (7, 0)),) * 3)
    (check,) = visit.platform()
    assert check.status == "fail" and "global batch" in check.found


def test_no_data_at_the_platforms_path_fails_with_what_to_mount() -> None:
    visit = Checkup(Asked("DGX1V", data="/no/such/imagenet"))
    visit.needs = platform_needs("DGX1V", None, "/no/such/imagenet")
    (check,) = visit.data_set()
    assert check.status == "fail" and check.found == "no data set at /no/such/imagenet"
    assert "docker run -v" in check.remedy


def test_data_of_ones_own(image_folder: Path) -> None:
    layout, sampled = Checkup(Asked(data=str(image_folder))).data_set()
    assert "3 classes" in layout.found and sampled.found.startswith("36 of 36 train images")
    (none,) = Checkup(Asked()).data_set()
    assert none.status == "skipped"
    (synthetic,) = Checkup(Asked(data="synthetic")).data_set()
    assert synthetic.found == "synthetic data"


def failing(error: IsolatedError) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        raise error

    return call


@pytest.mark.parametrize("step", ["software", "devices", "dali", "disk", "gloo"])
def test_a_crash_of_each_part_is_a_failure_with_a_remedy(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = IsolatedError("crashed with SIGSEGV")
    monkeypatch.setattr(checkup_module, "call", failing(error))
    monkeypatch.setattr(checkup_module, "call_together", failing(error))
    monkeypatch.setattr(checkup_module.probe_dali, "installed_wheels", lambda: ["dali 1"])
    steps = dict(inspect.getmembers(Checkup(Asked()), inspect.ismethod))
    failed = [check for check in steps[step]() if check.status == "fail"]
    assert len(failed) == 1 and "crashed with SIGSEGV" in failed[0].found and failed[0].remedy


def test_a_disk_that_hangs_is_told_apart_from_one_without_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = IsolatedError("no answer within 20 s", is_late=True)
    monkeypatch.setattr(checkup_data, "call", failing(late))
    (check,) = Checkup(Asked(data="/mnt/dead")).data_set()
    assert check.status == "fail" and check.found == "/mnt/dead did not answer within 20 s"


def test_nccl_asks_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    visit = Checkup(Asked())
    (alone,) = visit.nccl()
    assert alone.status == "skipped"
    visit.gpus = TorchGpus("2.10.0", "12.8", (), (Gpu("A100", (8, 0)),) * 4)
    asked: list[Call] = []

    def call_together(calls: list[Call], limit_s: float) -> list[object]:
        asked.extend(calls)
        raise IsolatedError("RuntimeError: NCCL error: unhandled system error")

    monkeypatch.setattr(checkup_module, "call_together", call_together)
    (check,) = visit.nccl()
    assert [call.args[:3] for call in asked] == [(rank, 4, "nccl") for rank in range(4)]
    assert check.status == "fail" and "NCCL_DEBUG=INFO" in check.remedy


def test_a_reader_that_goes_changes_no_exit_code() -> None:
    code = (
        "import sys\n"
        "from image_classification.cli import doctor\n"
        "from image_classification.doctor.check import fail\n"
        "doctor.Checkup.run = lambda self: (fail('a', 'x' * 9999, 'y') for _ in range(99))\n"
        "sys.exit(doctor.main([]))\n"
    )
    doctor = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert doctor.stdout is not None
    doctor.stdout.read(10)
    doctor.stdout.close()
    assert doctor.wait(60) == 2
