import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from image_classification.doctor import checks as checks_module
from image_classification.doctor import software
from image_classification.doctor.checks import CHECKS, Check, Context, Options, run_check
from image_classification.doctor.gpu import TorchGpu, TorchGpus
from image_classification.doctor.probe import ProbeError
from image_classification.doctor.report import CheckResult, ok
from image_classification.doctor.requirements import platform_needs


@pytest.fixture
def context(request: pytest.FixtureRequest) -> Iterable[Context]:
    context = Context(Options(*getattr(request, "param", ())))
    yield context
    context.prober.close()


def run(name: str, context: Context) -> list[CheckResult]:
    (check,) = (check for check in CHECKS if check.name == name)
    return list(run_check(check, context))


def failing(error: Exception) -> Callable[..., Any]:
    def call(*arguments: object, **options: object) -> object:
        raise error

    return call


def test_a_check_that_raises_is_a_failed_result(context: Context) -> None:
    def broken(context: Context) -> Iterable[CheckResult]:
        yield ok("first", "1")
        raise ZeroDivisionError("division by zero\nin the third line")

    first, failed = run_check(Check("disk", broken, 0), context)
    assert first.status == "ok"
    assert (failed.name, failed.status) == ("disk", "fail")
    assert failed.found == "the check itself failed: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("name", ["torch", "gpus", "dali", "disk", "gloo"])
def test_a_crash_of_a_probe_is_a_failure_with_a_remedy(
    name: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = failing(ProbeError("crashed with SIGSEGV"))
    monkeypatch.setattr(context.prober, "call", crash)
    monkeypatch.setattr(checks_module, "call_together", crash)
    monkeypatch.setattr(software, "installed_dali_wheels", lambda: ["dali 1"])
    failed = [result for result in run(name, context) if result.status == "fail"]
    assert len(failed) == 1 and "crashed with SIGSEGV" in failed[0].found and failed[0].remedy


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU here")
@pytest.mark.parametrize("context", [("DGX1V",), ("GAUDI",)], indirect=True)
def test_platforms_whose_devices_are_not_here(context: Context) -> None:
    results = [*run("gpus", context), *run("platform", context)]
    by_name = {result.name: result for result in results}
    if context.options.platform == "GAUDI":
        assert by_name["platform"].status == "fail" and "hpu" in by_name["platform"].found
    else:
        assert by_name["gpus"].status == "fail" and "8 x V100" in by_name["gpus"].found
        assert by_name["platform"].status == "ok"
        assert context.checkpoint_bytes and context.largest_model


@pytest.mark.parametrize("context", [("DGX1V",)], indirect=True)
def test_three_gpus_fit_no_run_of_the_published_batch_size(context: Context) -> None:
    gpu = TorchGpu("Tesla V100-SXM2-16GB", (7, 0))
    context.torch = TorchGpus("2.10.0", "12.8", (gpu,) * 3)
    (result,) = run("platform", context)
    assert result.status == "fail" and "global batch" in result.found


def test_a_missing_data_set_of_the_platform(context: Context) -> None:
    context.needs = platform_needs("DGX1V", None, "/no/such/imagenet")
    (result,) = run("data-set", context)
    assert result.status == "fail" and result.found == "no data set at /no/such/imagenet"
    assert "docker run -v" in result.remedy


def test_a_data_set_without_a_platform(image_folder: Path, context: Context) -> None:
    context.options = Options(data=str(image_folder))
    layout, sample = run("data-set", context)
    assert "3 classes" in layout.found and sample.found.startswith("36 of 36 train images")


@pytest.mark.parametrize(
    ("data", "found"), [(None, "neither --data nor --platform given"), ("synthetic",) * 2]
)
def test_no_data_set(data: str | None, found: str) -> None:
    (result,) = run("data-set", Context(Options(data=data)))
    assert result.status == "skipped" and found in result.found


def test_a_disk_that_hangs(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    context.options = Options(data="/mnt/dead")
    late = failing(ProbeError("no answer within 20 s", is_late=True))
    monkeypatch.setattr(context.prober, "call", late)
    (result,) = run("data-set", context)
    assert result.status == "fail" and result.found == "/mnt/dead did not answer within 20 s"


def test_nccl_uses_every_gpu(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    (result,) = run("nccl", context)
    assert result.status == "skipped"
    context.torch = TorchGpus("2.10.0", "12.8", (TorchGpu("A100", (8, 0)),) * 4)
    calls: list[tuple[Any, ...]] = []

    def call_together(function: object, arguments: list[tuple[Any, ...]], limit_s: float) -> None:
        calls.extend(arguments)
        raise ProbeError("RuntimeError: NCCL error: unhandled system error")

    monkeypatch.setattr(checks_module, "call_together", call_together)
    (result,) = run("nccl", context)
    assert [call[:3] for call in calls] == [(rank, 4, "nccl") for rank in range(4)]
    assert result.status == "fail" and "NCCL_DEBUG=INFO" in result.remedy


def test_the_doctor_itself_imports_no_torch() -> None:
    code = "import sys, image_classification.cli.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
