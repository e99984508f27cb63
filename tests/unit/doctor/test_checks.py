import subprocess
import sys
from collections.abc import Iterator

import pytest

from image_classification.doctor.checks import CHECKS, Check, Context, run_check
from image_classification.doctor.probe import ProbeError
from image_classification.doctor.report import CheckResult, ok
from tests.support.doctor import context


def test_check_that_raises_is_a_failed_result() -> None:
    def broken(context: Context) -> Iterator[CheckResult]:
        yield ok("first", "1")
        raise ZeroDivisionError("division by zero\nin the third line")

    first, failed = run_check(Check("disk", broken), context())
    assert first.status == "ok"
    assert (failed.name, failed.status) == ("disk", "fail")
    assert failed.found == "the check itself failed: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("name", ["torch", "gpus", "disk"])
def test_crash_of_a_probe_is_a_failure_with_a_remedy(name: str) -> None:
    (check,) = (check for check in CHECKS if check.name == name)
    results = list(run_check(check, context(ProbeError("crashed with SIGSEGV"))))
    failed = [result for result in results if result.status == "fail"]
    assert len(failed) == 1 and "crashed with SIGSEGV" in failed[0].found and failed[0].remedy


def test_the_doctor_itself_imports_no_torch() -> None:
    code = "import sys, image_classification.cli.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
