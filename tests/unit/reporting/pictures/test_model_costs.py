import importlib.util
import json
from pathlib import Path

import pytest

from image_classification.reporting.pictures.costs import COSTS_NAME, load_costs

ROOT = Path(__file__).parents[4]
GOLDEN = ROOT / "tests" / "golden" / "models"


def test_every_model_has_its_counts():
    costs = load_costs()
    golden = {path.stem: json.loads(path.read_text()) for path in GOLDEN.glob("*.json")}
    assert set(costs) == set(golden), "run scripts/model_costs.py"
    for name, counted in golden.items():
        assert costs[name].num_parameters == counted["num_parameters"], name
        assert costs[name].multiply_adds[224] == counted["multiply_adds_at_224_px"], name
        sizes = list(costs[name].multiply_adds.items())
        assert sizes == sorted(sizes) and sizes[0][1] < sizes[-1][1], name


@pytest.mark.slow
def test_the_file_is_what_the_script_writes(monkeypatch):
    import image_classification.models as models

    spec = importlib.util.spec_from_file_location(
        "model_costs", ROOT / "scripts" / "model_costs.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(models, "list_models", lambda: ["resnet18", "se-resnet50"])
    written = (ROOT / "image_classification" / "reporting" / COSTS_NAME).read_text().splitlines()
    for line in script.costs_text().splitlines():
        assert line in written
