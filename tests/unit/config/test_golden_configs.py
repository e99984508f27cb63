import json
from pathlib import Path

from image_classification.config.catalogue import load_catalogue
from image_classification.config.resolve import without_line
from image_classification.config.schema import MODES
from tests.support.golden_configs import dump_golden, golden_configs

GOLDEN = Path(__file__).parents[2] / "golden" / "configs" / "runs.json"


def test_every_listed_run_resolves_as_in_the_golden_file() -> None:
    stored, now = json.loads(GOLDEN.read_text(encoding="utf-8")), golden_configs()
    assert list(now["runs"]) == list(stored["runs"])
    assert len(now["runs"]) == len(list(load_catalogue().runs()))
    assert list(now["modes"]) == [f"{mode} of resnet50 DGXA100 AMP" for mode in MODES]
    now = json.loads(dump_golden(now))
    assert now["common"] == stored["common"]
    for group in ("runs", "modes"):
        for name, values in now[group].items():
            assert values == stored[group][name], (
                f"{name} has changed; if that is meant: python scripts/regenerate_golden.py configs"
            )


def test_the_file_is_written_as_it_is_stored() -> None:
    assert dump_golden(golden_configs()) == GOLDEN.read_text(encoding="utf-8")


def test_a_moved_line_changes_no_origin() -> None:
    assert without_line("configs.yml:12, recipe 90e") == "configs.yml, recipe 90e"
    assert without_line("/a/b.yml:3, defaults") == "/a/b.yml, defaults"
    assert without_line("formula: 2 / (1 x 2)") == "formula: 2 / (1 x 2)"
    assert without_line("--set optim.lr=1") == "--set optim.lr=1"
