import faulthandler
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_classification.core.errors import DataError
from image_classification.doctor.probe import ProbeError, Prober, call_together, one_line
from image_classification.doctor.requirements import get_accelerator


@pytest.fixture
def prober() -> Iterator[Prober]:
    prober = Prober()
    yield prober
    prober.close()


def test_calls_share_one_child_process(prober: Prober) -> None:
    assert prober.call(math.hypot, 3.0, 4.0, limit_s=60) == 5.0
    pids = {prober.call(os.getpid, limit_s=60) for _ in range(2)}
    assert len(pids) == 1 and os.getpid() not in pids


def test_calls_together_have_a_process_each() -> None:
    pids = call_together(os.getpid, [(), ()], 60)
    assert len({os.getpid(), *pids}) == 3


def test_exception_is_one_line(prober: Prober) -> None:
    with pytest.raises(ProbeError, match=r"FileNotFoundError: .*no such") as raised:
        prober.call(os.listdir, "/no such", limit_s=60)
    assert not raised.value.is_late and not raised.value.is_user_error


def test_user_error_keeps_its_message(prober: Prober) -> None:
    with pytest.raises(ProbeError, match=r"^unknown device kind 'xpu'") as raised:
        prober.call(get_accelerator, "xpu", limit_s=60)
    assert raised.value.is_user_error


def test_crash_has_its_signal_and_last_output(
    prober: Prober, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProbeError, match=r"^crashed with SIGSEGV"):
        prober.call(vars(faulthandler)["_sigsegv"], limit_s=60)
    with pytest.raises(ProbeError, match=r"^crashed with SIGABRT: \S"):
        prober.call(vars(faulthandler)["_fatal_error_c_thread"], limit_s=60)
    with pytest.raises(ProbeError, match="crashed with SIGKILL"):
        prober.call(signal.raise_signal, signal.SIGKILL, limit_s=60)
    with pytest.raises(ProbeError, match="ended with exit code 7"):
        prober.call(os._exit, 7, limit_s=60)
    assert prober.call(math.sqrt, 4.0, limit_s=60) == 2.0
    assert capfd.readouterr() == ("", "")


def test_output_of_a_probe_does_not_mix_with_its_answer(
    prober: Prober, capfd: pytest.CaptureFixture[str]
) -> None:
    assert prober.call(os.system, "echo printed; echo to the log >&2", limit_s=60) == 0
    assert capfd.readouterr() == ("", "")


def test_time_limit(prober: Prober) -> None:
    start_s = time.monotonic()
    with pytest.raises(ProbeError, match=r"no answer within 0\.5 s") as raised:
        prober.call(time.sleep, 600, limit_s=0.5)
    assert raised.value.is_late and time.monotonic() - start_s < 60
    assert prober.call(math.sqrt, 4.0, limit_s=60) == 2.0


def test_first_failure_ends_the_processes_that_would_wait() -> None:
    start_s = time.monotonic()
    with pytest.raises(ProbeError, match=r"(TypeError|ValueError)"):
        call_together(time.sleep, [(600,), (-1,)], 300)
    assert time.monotonic() - start_s < 60


def test_child_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, time; from image_classification.doctor.probe import Prober; p = Prober();"
        "print(p.call(os.getpid, limit_s=60), flush=True);"
        "p._child.send(time.sleep, (600,)); os._exit(0)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    deadline_s = time.monotonic() + 30
    while Path(f"/proc/{out.stdout.strip()}/cmdline").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_one_line() -> None:
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(DataError("a  b")) == "DataError: a b"
