"""No setting is parsed and then ignored: some code outside ``config`` reads each schema key.

Read off the syntax trees: ``….SECTION.FIELD``, or ``NAME.FIELD`` where the module assigns the
section to NAME or annotates NAME with the section's class. A key that only shapes how other keys
resolve must be looked up by its full name in `resolve` or `placement`.
"""

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

import image_classification
from image_classification.config.keys import KEYS
from image_classification.config.schema import SECTIONS

PACKAGE = Path(image_classification.__file__).parent
RESOLVERS = ("config/resolve.py", "config/placement.py")


def last_name(node: ast.expr | None) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def aliases(tree: ast.Module) -> set[tuple[str, str]]:
    """Every (name, section) the module binds."""
    section_of = {cls.__name__: section for section, cls in SECTIONS.items()}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            for target in node.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                for name, value in zip(names, values, strict=False):
                    if isinstance(value, ast.Attribute):
                        found.add((last_name(name), value.attr))
        elif isinstance(node, ast.arg):
            found.add((node.arg, section_of.get(last_name(node.annotation), "")))
        elif isinstance(node, ast.AnnAssign):
            found.add((last_name(node.target), section_of.get(last_name(node.annotation), "")))
    return {(name, section) for name, section in found if name and section in SECTIONS}


def reads(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Every (section, attribute) read in the module."""
    bound = aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        base = last_name(node.value)
        if isinstance(node.value, ast.Attribute) and base in SECTIONS:
            yield base, node.attr
        for section in SECTIONS:
            if (base, section) in bound:
                yield section, node.attr


def used_keys() -> set[str]:
    used = set()
    fields = {(key.section, key.field): key.name for key in KEYS.values()}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name in RESOLVERS:
            used |= {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and node.value in KEYS
            }
        elif not name.startswith("config/"):
            used |= {fields[read] for read in reads(tree) if read in fields}
    return used


USED = used_keys()


@pytest.mark.parametrize("name", KEYS)
def test_some_code_reads_the_key(name: str) -> None:
    assert name in USED, f"{name} is set, explained and never read"


def test_an_unused_key_is_found() -> None:
    tree = ast.parse("def f(cfg: ScheduleConfig, other):\n    return cfg.power + other.gamma")
    assert set(reads(tree)) == {("schedule", "power")}
    tree = ast.parse("m = config.model\nx = m.init + config.data.mean + run.workspace")
    assert set(reads(tree)) == {("model", "init"), ("data", "mean")}


def test_the_table_has_every_field() -> None:
    fields = {(s, f.name) for s, cls in SECTIONS.items() for f in dataclasses.fields(cls)}
    assert {(key.section, key.field) for key in KEYS.values()} == fields
