import io
import json

import pytest
from rich.console import Console

from image_classification.doctor.report import (
    CheckResult,
    fail,
    judge,
    ok,
    overall,
    print_result,
    result_line,
    results_json,
    skipped,
    verdict,
    warn,
)

RESULTS = [
    ok("python", "3.11.7"),
    warn("shared-memory", "/dev/shm: 64.0 MiB free of 64.0 MiB", "docker run --ipc=host " * 6),
    fail("data-set", "no data set at /" + "deep/" * 30, "mount it [here]"),
    skipped("nccl", "needs 2 GPUs or more, here: 0"),
]
FINE, WARNING, FAILURE, SKIPPED = RESULTS


@pytest.mark.parametrize(
    ("results", "status"),
    [
        ([], "ok"),
        ([FINE, SKIPPED], "ok"),
        ([FINE, WARNING], "warn"),
        ([WARNING, FAILURE, FINE], "fail"),
    ],
)
def test_the_worst_status_is_that_of_the_whole(results: list[CheckResult], status: str) -> None:
    assert overall(results) == status


def test_judge() -> None:
    statuses = [judge("a", "", value, 10, 20, "remedy").status for value in (9, 10, 19, 20)]
    assert statuses == ["fail", "warn", "warn", "ok"]


def test_json() -> None:
    content = json.loads(results_json(RESULTS))
    assert list(content) == ["schema_version", "checks", "status"]
    assert content["schema_version"] == 1 and content["status"] == "fail"
    keys = ["name", "status", "found", "remedy"]
    assert [list(check) for check in content["checks"]] == [keys] * 4
    assert list(content["checks"][0].values()) == ["python", "ok", "3.11.7", ""]


def test_plain_output_has_one_line_per_check() -> None:
    assert result_line(FINE) == "ok      python          3.11.7"
    assert result_line(SKIPPED) == "skipped nccl            needs 2 GPUs or more, here: 0"
    assert result_line(FAILURE).endswith(" | remedy: mount it [here]")
    assert not any("\n" in result_line(result) for result in RESULTS)


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.status)
def test_terminal_columns_fit_the_width(result: CheckResult, width: int) -> None:
    file = io.StringIO()
    print_result(Console(file=file, width=width), result)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith(result.status) and result.name in lines[0]
    assert all(line.startswith(" " * 24) for line in lines[1:])
    joined = "".join(lines).replace(" ", "")
    assert result.found.replace(" ", "") in joined
    assert result.remedy.replace(" ", "") in joined


def test_verdict() -> None:
    assert verdict(RESULTS).startswith("1 ok, 1 warnings, 1 failed, 1 skipped: a run would fail")
    assert verdict([FINE]).endswith(": ready")
    assert verdict([FINE, WARNING]).endswith("with warnings")
