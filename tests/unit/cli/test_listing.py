import json
import subprocess
import sys

import pytest

from image_classification.cli.launch import LISTS, listing, render_listing
from image_classification.config.catalogue import load_catalogue
from image_classification.models import list_models

CATALOGUE = load_catalogue()


def test_every_list_can_be_had_alone() -> None:
    whole = listing(CATALOGUE)
    assert tuple(whole) == LISTS
    for what in LISTS:
        assert listing(CATALOGUE, what) == {what: whole[what]}


def test_models_are_all_that_can_be_built() -> None:
    assert set(listing(CATALOGUE, "models")["models"]) == set(list_models())


def test_json_has_names_and_runs() -> None:
    content = json.loads(render_listing(CATALOGUE, "all", as_json=True))
    assert "DGX1V" in content["platforms"]
    run = {
        "model": "resnet50",
        "platform": "DGX1V",
        "precision": "AMP",
        "recipe": "250e",
        "default": True,
    }
    assert run in content["runs"]
    assert {**run, "recipe": "90e", "default": False} in content["runs"]


def test_text_has_a_line_a_combination_with_the_default_marked() -> None:
    lines = render_listing(CATALOGUE, "runs").splitlines()
    assert len(lines) == 1 + len(CATALOGUE.entries)
    (line,) = [x for x in lines if x.split()[:3] == ["resnet50", "DGX1V", "AMP"]]
    assert line.split()[3:] == ["50e", "90e", "250e*"]
    assert render_listing(CATALOGUE, "precisions").splitlines() == list(CATALOGUE.precisions)
    assert render_listing(CATALOGUE).splitlines()[0].startswith("models: resnet50 ")


@pytest.mark.parametrize(
    "argv",
    [
        ["--list", "--json"],
        [
            "--model",
            "resnet50",
            "--precision",
            "AMP",
            "--mode",
            "convergence",
            "--platform",
            "CPU",
            "--explain",
        ],
        ["--model", "nothing"],
    ],
)
def test_answering_needs_neither_torch_nor_numpy(argv: list[str]) -> None:
    code = (
        "import sys\n"
        "from tests.support.cli import launch as main\n"
        f"code = main({argv!r})\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 10 + code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    wanted = 12 if argv[-1] == "nothing" else 10
    assert (done.returncode, done.stderr.count("\n")) == (wanted, int(wanted == 12)), done.stderr
