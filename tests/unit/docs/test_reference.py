"""The reference pages list every option, setting and name; the site has every page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from image_classification.__main__ import VERBS
from image_classification.config.catalogue import load_catalogue
from image_classification.config.keys import KEYS
from image_classification.config.options import OPTIONS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def hook(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("docs_reference")


def test_every_option_has_a_row_that_links_to_its_setting(hook: ModuleType):
    page = hook.options()
    for option in OPTIONS:
        row = next(line for line in page.splitlines() if f"`{option.flags[0]}`" in line)
        assert f"[`{option.key}`](settings.md#" in row
        assert option.help in row
    for flag in ("--model", "--explain", "--list", "--emit", "--set"):
        assert f"`{flag}`" in page


def test_every_setting_has_a_row(hook: ModuleType):
    rows = [line for line in hook.settings().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == list(KEYS)
    loss_scale = next(line for line in rows if line.startswith("| `precision.loss_scale`"))
    assert "| `null` | number or `dynamic`; or `null` |" in loss_scale


def test_every_combination_has_a_row(hook: ModuleType):
    page = hook.names()
    combinations = {(run.model, run.platform, run.precision) for run in load_catalogue().runs()}
    for names in combinations:
        assert f"| {' | '.join(names)} |" in page


def test_every_command_has_its_help(hook: ModuleType):
    page = hook.commands()
    for words in ("dataset pack", "doctor", "report compare"):
        assert f"\n## {words}\n\n```text\nusage: image-classification {words} " in f"\n{page}"
    assert set(hook.COMMANDS) | {"launch"} == set(VERBS)


def test_marks_are_replaced_and_unknown_ones_refused(hook: ModuleType):
    page = (ROOT / "docs" / "reference" / "names.md").read_text(encoding="utf-8")
    assert "| resnet50 | DGX1V | AMP |" in hook.on_page_markdown(page, config=None)
    with pytest.raises(KeyError, match="weather"):
        hook.on_page_markdown("<!-- reference: weather -->")


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^ +- (?:.+: )?([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert set(listed) == pages
    assert len(listed) == len(pages)
