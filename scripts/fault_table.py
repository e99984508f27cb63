"""Write docs/reliability.md from the results of the fault tests.

``fault_table.py [RESULTS.xml…] [-o docs/reliability.md]``: RESULTS are the files of pytest's
``--junitxml``. A test without a result keeps its row with the date of its last run, also if it
moved to another file. The row of a removed test is dropped, and a test that was never run says
so.

Every test in tests/faults has a row, and every test elsewhere with ``@pytest.mark.faults(FAULT,
SEEN)``. The fault is the first line of the test's docstring, else FAULT, else its name. What was
observed is what the test recorded as ``seen``, else SEEN, which is what a passing test asserts.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
NOT_RUN = "not run yet"
AS_DESCRIBED = "as described"

INTRODUCTION = """\
# Reliability

Each row is a test that causes a fault in a real run and checks the outcome. `make test-faults`
runs them all in full and rewrites this page; `make test` runs a short form of each. Do not edit
the tables by hand.

"Bit-equal" means that every tensor of the last checkpoint (weights, batch norm statistics,
optimizer) equals that of an undisturbed run. It holds on a CPU in FP32 with the same number of
processes. A refused run ends with one line that names the problem and the remedy, and with exit
code 2 unless the row says otherwise. "As described": the outcome is the one in the first column.
"One form": the test has no shorter form.
"""


@dataclass(frozen=True)
class FaultTest:
    """A fault test.

    path: relative to the repository. what: the fault. promise: the outcome named by its marker.
    """

    path: str
    name: str
    group: str
    what: str
    promise: str

    @property
    def key(self) -> str:
        """The test as named in the last column."""
        return f"{self.path}::{self.name}"


@dataclass
class Result:
    """The results of one test in one run of pytest, over all its parameters."""

    times: int = 0
    seen: list[str] = field(default_factory=list)
    forms: set[str] = field(default_factory=set)
    failed: int = 0
    skipped: list[str] = field(default_factory=list)


def fault_tests(root: Path = ROOT) -> list[FaultTest]:
    """Return the tests of tests/faults and those marked ``faults`` elsewhere, by file."""
    found = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        is_ours = path.parent.name == "faults"
        if not is_ours and "mark.faults" not in text:
            continue
        module = ast.parse(text)
        everything = is_ours or any(
            isinstance(node, ast.Assign) and "mark.faults" in ast.unparse(node)
            for node in module.body
        )
        group = _first_line(module) or path.stem
        for node in module.body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            marks = [d for d in node.decorator_list if "mark.faults" in ast.unparse(d)]
            if everything or marks:
                words = node.name.removeprefix("test_").replace("_", " ").capitalize()
                fault, promise = _words_of(marks) or (words, AS_DESCRIBED)
                what = _first_line(node) or fault
                relative = path.relative_to(root).as_posix()
                found.append(FaultTest(relative, node.name, group, what, promise))
    return found


def _words_of(marks: Sequence[ast.expr]) -> tuple[str, str] | None:
    for mark in marks:
        if isinstance(mark, ast.Call) and mark.args:
            fault, promise = (str(ast.literal_eval(argument)) for argument in mark.args)
            return fault, promise
    return None


def _first_line(node: ast.Module | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ").strip()


def read_results(paths: Sequence[Path]) -> dict[str, Result]:
    """Return the results by test key; if several files have a case, the last one counts."""
    cases = {
        (case.get("classname", ""), case.get("name", "")): case
        for path in paths
        for case in ElementTree.parse(path).iter("testcase")
    }
    results: dict[str, Result] = {}
    for (classname, name), case in cases.items():
        key = f"{classname.replace('.', '/')}.py::{name.partition('[')[0]}"
        _add(results.setdefault(key, Result()), case)
    return results


def _add(result: Result, case: ElementTree.Element) -> None:
    properties = {p.get("name"): p.get("value", "") for p in case.iter("property")}
    skipped = case.find("skipped")
    if skipped is not None:
        result.skipped.append(skipped.get("message", "skipped"))
    elif case.find("failure") is not None or case.find("error") is not None:
        result.failed += 1
    else:
        result.times += int(properties.get("times", "1"))
        result.forms.add(properties.get("form", ""))
        seen = properties.get("seen", "")
        if seen and seen not in result.seen:
            result.seen.append(seen)


def outcome(result: Result, promise: str) -> str:
    """Return the text of the column "Observed"."""
    parts = list(result.seen)
    if result.times and not parts:
        parts.append(promise)
    if result.failed:
        parts.append(f"**failed** {result.failed} time(s)")
    if result.skipped and not parts:
        parts.append(f"not run: {result.skipped[0].removeprefix('Skipped: ')}")
    return "; ".join(parts).replace("|", "\\|").replace("\n", " ")


def circumstances(result: Result, now: datetime) -> str:
    """Return date and form of a run."""
    form = "/".join(sorted(f for f in result.forms if f)) or "one form"
    return f"{now:%Y-%m-%d}, {form}"


def versions() -> str:
    """Return versions and machine of this run."""
    names = {"torch": "torch", "torchvision": "torchvision", "DALI": "nvidia-dali-cuda120"}
    parts = [f"Python {platform.python_version()}"]
    parts += [f"{shown} {_version(package)}" for shown, package in names.items()]
    cores = len(os.sched_getaffinity(0))
    return f"{', '.join(parts)}, {platform.system()} {platform.machine()}, {cores} cores"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def rows_of(page: str) -> dict[str, tuple[str, str, str]]:
    """Return ``{test key: (times, observed, when)}`` of an earlier page."""
    found = {}
    for line in page.splitlines():
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and "::" in cells[4]:
            found[cells[4].strip("`")] = (cells[1], cells[2], cells[3])
    return found


def latest_of(page: str) -> str:
    """Return the line ``Latest run: …`` of an earlier page; empty if there is none."""
    return next((line for line in page.splitlines() if line.startswith("Latest run: ")), "")


def render(
    tests: Sequence[FaultTest], results: dict[str, Result], before: str, now: datetime
) -> str:
    """Return the whole page."""
    latest = f"Latest run: {now:%Y-%m-%d}, {versions()}." if results else latest_of(before)
    return "\n".join([INTRODUCTION, latest, *_rows(tests, results, rows_of(before), now)]) + "\n"


def _rows(
    tests: Sequence[FaultTest],
    results: dict[str, Result],
    kept: dict[str, tuple[str, str, str]],
    now: datetime,
) -> Iterator[str]:
    by_name = {key.partition("::")[2]: cells for key, cells in kept.items()}
    group = ""
    for test in tests:
        if test.group != group:
            group = test.group
            yield f"\n## {group.rstrip('.')}\n"
            yield "| Fault | Times | Observed | Date, form | Test |"
            yield "|---|---|---|---|---|"
        if test.key in results:
            result = results[test.key]
            cells = (str(result.times), outcome(result, test.promise), circumstances(result, now))
        else:
            cells = kept.get(test.key) or by_name.get(test.name, ("0", NOT_RUN, "-"))
        what = test.what.rstrip(".").replace("|", "\\|")
        yield f"| {what} | {' | '.join(cells)} | `{test.key}` |"


def main(argv: Sequence[str]) -> int:
    """Write the page; return 1 if a test failed, else 0."""
    parser = argparse.ArgumentParser(description="write docs/reliability.md from results of pytest")
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS.xml")
    parser.add_argument("-o", "--out", type=Path, default=PAGE)
    options = parser.parse_args(argv)
    results = read_results(options.results)
    before = options.out.read_text(encoding="utf-8") if options.out.exists() else ""
    page = render(fault_tests(), results, before, datetime.now(timezone.utc))
    options.out.write_text(page, encoding="utf-8")
    print(f"wrote {options.out}")
    return 1 if any(result.failed for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
