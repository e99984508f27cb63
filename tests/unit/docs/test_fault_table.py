"""docs/reliability.md has one row per fault test."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]

RESULTS = """<testsuites><testsuite>
<testcase classname="tests.faults.test_a" name="test_one[1]"><properties>
<property name="seen" value="survived a | b"/><property name="times" value="80"/>
<property name="form" value="full"/></properties></testcase>
<testcase classname="tests.faults.test_a" name="test_one[2]"><properties>
<property name="seen" value="refused"/><property name="times" value="20"/>
<property name="form" value="full"/></properties></testcase>
<testcase classname="tests.faults.test_a" name="test_two"><skipped message="no root"/></testcase>
<testcase classname="tests.unit.test_b" name="test_marked"/>
<testcase classname="tests.unit.test_b" name="test_refused"/>
<testcase classname="tests.unit.test_b" name="test_broken"><failure>x</failure></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def table(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("fault_table")


def test_every_fault_test_has_a_row(table) -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    existing = {test.key for test in table.fault_tests()}
    assert existing, "no fault test was found"
    assert set(table.rows_of(page)) == existing, "run `make test-faults`"


def test_no_row_reports_a_failure(table) -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert [key for key, (_, seen, _) in table.rows_of(page).items() if "failed" in seen] == []


def test_rows_from_results(table, tmp_path: Path) -> None:
    (tmp_path / "tests" / "faults").mkdir(parents=True)
    (tmp_path / "tests" / "unit").mkdir()
    (tmp_path / "tests" / "faults" / "test_a.py").write_text(
        '"""Group A."""\n\ndef test_one():\n    """Once."""\n\ndef test_two():\n    pass\n'
        "\ndef test_never():\n    pass\n\ndef test_new():\n    pass\n"
        "\ndef test_earlier():\n    pass\n\ndef helper():\n    pass\n"
    )
    (tmp_path / "tests" / "unit" / "test_b.py").write_text(
        '"""Group B."""\nimport pytest\n\n@pytest.mark.faults\ndef test_marked():\n    """M."""\n'
        "\n@pytest.mark.faults\ndef test_broken():\n    pass\n\ndef test_other():\n    pass\n"
        '\n@pytest.mark.faults("A full disk", "refused")\ndef test_refused():\n    pass\n'
    )
    (tmp_path / "results.xml").write_text(RESULTS)
    before = (
        "| Earlier | 7 | survived | 2020-01-01, full | `tests/faults/test_a.py::test_earlier` |\n"
        "| Moved | 9 | refused | 2020-01-01, full | `tests/faults/test_old.py::test_never` |\n"
        "| Gone | 7 | survived | 2020-01-01, full | `tests/faults/test_a.py::test_gone` |\n"
    )
    tests = table.fault_tests(tmp_path)
    results = table.read_results([tmp_path / "results.xml"])
    page = table.render(tests, results, before, datetime(2026, 1, 2, tzinfo=timezone.utc))
    both = r"survived a \| b; refused"
    assert table.rows_of(page) == {
        "tests/faults/test_a.py::test_one": ("100", both, "2026-01-02, full"),
        "tests/faults/test_a.py::test_two": ("0", "not run: no root", "2026-01-02, one form"),
        "tests/faults/test_a.py::test_never": ("9", "refused", "2020-01-01, full"),
        "tests/faults/test_a.py::test_new": ("0", table.NOT_RUN, "-"),
        "tests/faults/test_a.py::test_earlier": ("7", "survived", "2020-01-01, full"),
        "tests/unit/test_b.py::test_marked": ("1", table.AS_DESCRIBED, "2026-01-02, one form"),
        "tests/unit/test_b.py::test_refused": ("1", "refused", "2026-01-02, one form"),
        "tests/unit/test_b.py::test_broken": ("0", "**failed** 1 time(s)", "2026-01-02, one form"),
    }
    assert "\n## Group A\n" in page
    assert "| Once | 100 |" in page
    assert "| A full disk | 1 | refused |" in page
    assert "\nLatest run: 2026-01-02, Python " in page
    # Without new results, nothing changes.
    assert table.render(tests, {}, page, datetime.now(timezone.utc)) == page


def test_a_repeated_case_replaces_only_itself(table, tmp_path: Path) -> None:
    def case(name: str, times: int, outcome: str = "") -> str:
        properties = f'<property name="times" value="{times}"/>'
        return (
            f'<testcase classname="tests.faults.test_a" name="{name}">'
            f"<properties>{properties}</properties>{outcome}</testcase>"
        )

    first, second = tmp_path / "1.xml", tmp_path / "2.xml"
    first.write_text(f"<t>{case('test_k[1]', 80)}{case('test_k[2]', 1, '<failure/>')}</t>")
    second.write_text(f"<t>{case('test_k[2]', 20)}</t>")
    result = table.read_results([first, second])["tests/faults/test_a.py::test_k"]
    assert (result.times, result.failed) == (100, 0)
