"""Which layer may import which (DESIGN), and which layers never import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import image_classification

PACKAGE = Path(__file__).parents[2] / "image_classification"
NAME = PACKAGE.name

PARTS = ("models", "optim", "data", "devices", "distributed", "telemetry", "reporting")
ALLOWED = {
    "core": set(),
    "config": {"core"},
    **{part: {"core", "config"} for part in PARTS},
    "engine": {"core", "config", *PARTS},
    "doctor": {"core", "config", *PARTS, "engine"},
    "launch": {"core", "config", *PARTS, "engine"},
    "cli": {"core", "config", *PARTS, "engine", "doctor", "launch"},
}
WITHOUT_TORCH = ("core", "config", "reporting")


def modules(folder: str) -> list[Path]:
    found = sorted((PACKAGE / folder).rglob("*.py"))
    assert found, folder
    return found


def names_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in ast.unparse(test)


def imported(path: Path, type_checking: bool = True) -> set[str]:
    """Every module ``path`` names in an import, at any depth of the file."""
    names: set[str] = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not type_checking and isinstance(node, ast.If) and names_type_checking(node.test):
            skipped.update(child for part in node.body for child in ast.walk(part))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def layers_used(path: Path) -> set[str]:
    own = (name.split(".") for name in imported(path) if name.split(".")[0] == NAME)
    return {parts[1] for parts in own if len(parts) > 1 and (PACKAGE / parts[1]).is_dir()}


def test_every_folder_has_a_layer():
    folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ALLOWED)


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_those_below_it(layer):
    for path in modules(layer):
        above = layers_used(path) - ALLOWED[layer] - {layer}
        assert not above, f"{path.relative_to(PACKAGE)} imports {sorted(above)}"


@pytest.mark.parametrize("layer", ALLOWED)
def test_no_layer_imports_the_top_level(layer):
    exported = {f"{NAME}.{name}" for name in image_classification.__all__}
    for path in modules(layer):
        above = imported(path) & {f"{NAME}.api", *exported}
        assert not above, f"{path.relative_to(PACKAGE)} imports {sorted(above)}"


@pytest.mark.parametrize("layer", WITHOUT_TORCH)
def test_light_layers_never_import_torch(layer):
    # SummaryWriter is torch's; the tracker imports it when it is opened.
    trackers = PACKAGE / "reporting" / "trackers"
    for path in modules(layer):
        if path.parent == trackers:
            continue
        roots = {name.split(".")[0] for name in imported(path, type_checking=False)}
        assert not roots & {"torch", "torchvision"}, path


def test_importing_the_light_layers_loads_no_torch():
    names = [
        f"{NAME}.{path.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.')}"
        for layer in WITHOUT_TORCH
        for path in modules(layer)
        if path.name != "__init__.py"
    ]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_argparse_stays_in_the_command_line():
    for layer in set(ALLOWED) - {"cli"}:
        for path in modules(layer):
            assert "argparse" not in imported(path), path
