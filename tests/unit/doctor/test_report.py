import io
import json

from rich.console import Console

from image_classification.doctor.check import (
    Check,
    fail,
    ok,
    skipped,
    warn,
)
from image_classification.doctor.report import (
    check_line,
    checks_json,
    print_check,
    verdict,
)

CHECKS = [
    ok("python", "3.11.7"),
    warn("shared-memory", "/dev/shm: 64.0 MiB free of 64.0 MiB", "docker run --ipc=host " * 6),
    fail("data-set", "no data set at /" + "deep/" * 30, "mount it [here]"),
    skipped("nccl", "needs 2 GPUs or more, here: 0"),
]


def test_json_is_the_documented_object() -> None:
    content = json.loads(checks_json(CHECKS))
    assert list(content) == ["schema_version", "checks", "status"]
    assert content["schema_version"] == 1 and content["status"] == "fail"
    assert [list(check) for check in content["checks"]] == [
        ["name", "status", "found", "remedy"]
    ] * 4
    assert content["checks"][0] == {
        "name": "python",
        "status": "ok",
        "found": "3.11.7",
        "remedy": "",
    }


def test_plain_lines_are_one_a_check() -> None:
    assert check_line(CHECKS[0]) == "ok      python          3.11.7"
    assert check_line(CHECKS[3]) == "skipped nccl            needs 2 GPUs or more, here: 0"
    assert check_line(CHECKS[2]).endswith(" | remedy: mount it [here]")
    assert not any("\n" in check_line(check) for check in CHECKS)


def printed(check: Check, width: int) -> list[str]:
    file = io.StringIO()
    print_check(Console(file=file, force_terminal=True, width=width, no_color=True), check)
    plain = file.getvalue().replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "")
    return plain.splitlines()


def test_a_terminal_gets_columns_that_fit_it() -> None:
    for width in (60, 80, 100):
        for check in CHECKS:
            lines = printed(check, width)
            assert max(map(len, lines)) <= width
            assert lines[0].startswith(check.status) and check.name in lines[0]
            assert all(line.startswith(" " * 24) for line in lines[1:])
            joined = "".join(lines).replace(" ", "")
            assert check.found.replace(" ", "") in joined
            assert check.remedy.replace(" ", "") in joined


def test_the_last_line_counts() -> None:
    assert verdict(CHECKS).startswith("1 ok, 1 to look at, 1 failed, 1 skipped: a run would break")
    assert verdict(CHECKS[:1]).endswith(": ready")
    assert verdict(CHECKS[:2]).endswith("marked warn")
