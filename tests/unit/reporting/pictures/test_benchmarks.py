import importlib.util
import json
from pathlib import Path

import pytest

from image_classification.reporting.pictures.benchmarks import COSTS_NAME, load_costs
from tests.support.pictures import drawn, drawn_names, planned, series_of, why_left_out
from tests.support.runs import write_inference

ROOT = Path(__file__).parents[4]


def test_latency_beside_the_published_table_of_the_platform(tmp_path, make_config):
    run = write_inference(tmp_path / "amp", make_config())
    series = series_of(drawn("latency", run))
    published = "published, DGX-1 V100 16GB, mean"
    assert list(series) == ["measured, mean", "measured, p99", published]
    mean = series["measured, mean"]
    assert mean.names[0] == "1"
    assert mean.y[0] == pytest.approx(6.7)
    assert series["measured, p99"].y[0] == pytest.approx(1.2 * 6.7)
    assert len(series[published].x) >= 8
    assert drawn_names(planned(run)) == ["latency"]


def test_latency_without_published_figures_has_a_note(tmp_path, make_config):
    config = make_config(names={"model": "resnet18"}, model={"name": "resnet18"})
    picture = drawn("latency", write_inference(tmp_path / "r", config))
    assert picture.notes[-1] == "There is no published latency of resnet18 AMP."


def test_latency_labels_differ_between_precisions(tmp_path, make_config):
    runs = [
        write_inference(tmp_path / name, make_config(names={"precision": name}), scale=scale)
        for name, scale in (("AMP", 1.0), ("FP32", 2.4))
    ]
    assert {
        "AMP, mean",
        "FP32, mean",
        "published, AMP DGX-1 V100 16GB, mean",
        "published, FP32 DGX-1 V100 16GB, mean",
    } <= set(series_of(drawn("latency", *runs)))


def test_accuracy_cost_has_every_published_model_and_the_run(trained):
    series = series_of(drawn("accuracy_cost", trained(epochs=90)))
    run = series["this run: resnet50"]
    assert (run.x, run.y) == ((4.089184256,), (76.8,))
    names = {name for each in series.values() for name in each.names if name}
    assert {"resnet50", "resnext101-32x4d", "se-resnext101-32x4d"} <= names
    short = series["published, up to 100 epochs"]
    assert 76.5 < short.y[short.x.index(4.089184256)] < 77.3
    assert max(short.areas) > min(short.areas)


@pytest.mark.parametrize("changes", [{"data": {"path": "demo"}}, {"model": {"num_classes": 10}}])
def test_accuracy_cost_does_not_apply_to_other_data(trained, changes):
    run = trained("run", changes)
    assert "accuracy_cost" not in planned(run)
    assert why_left_out("accuracy_cost", run, run).endswith("its data set is not ImageNet")


def test_accuracy_cost_is_left_out_for_unknown_costs(trained):
    run = trained("run", {"data": {"image_size": 200}})
    why = "the multiply-adds of resnet50 at 200 pixels are unknown"
    assert why_left_out("accuracy_cost", run) == why


def test_scaling_has_the_ideal_line_and_the_published_points(trained):
    runs = [
        trained(f"n{n}", {"platform": {"num_devices": n}}, devices=n, images_per_s=speed)
        for n, speed in ((1, 1150.0), (2, 2260.0), (8, 8300.0))
    ]
    picture = drawn("scaling", *runs)
    series = series_of(picture)
    assert (series["measured"].x, series["measured"].y) == ((1, 2, 8), (1150, 2260, 8300))
    assert (series["ideal"].x, series["ideal"].y) == ((1, 8), (1150, 9200))
    published = series["published, DGX-1 V100 16GB"]
    assert (published.x, published.y) == ((1, 8), (1200, 8322))
    assert picture.panels[0].x_ticks == (1, 2, 8)


def test_scaling_notes_unequal_batches(trained):
    runs = [
        trained(
            f"n{n}",
            {"platform": {"num_devices": n}, "batch": {"per_device_batch": batch}},
            devices=n,
        )
        for n, batch in ((1, 128), (8, 256))
    ]
    notes = drawn("scaling", *runs).notes
    assert any("images per device differ between the runs: 128, 256" in note for note in notes)


def test_every_model_has_its_costs():
    costs = load_costs()
    files = (ROOT / "tests" / "golden" / "models").glob("*.json")
    golden = {path.stem: json.loads(path.read_text()) for path in files}
    assert set(costs) == set(golden), "run scripts/model_costs.py"
    for name, counted in golden.items():
        assert costs[name].num_parameters == counted["num_parameters"], name
        assert costs[name].multiply_adds[224] == counted["multiply_adds_at_224_px"], name
        sizes = list(costs[name].multiply_adds.items())
        assert sizes == sorted(sizes) and sizes[0][1] < sizes[-1][1], name


@pytest.mark.slow
def test_script_writes_the_lines_of_the_costs_file(monkeypatch):
    import image_classification.models as models

    path = ROOT / "scripts" / "model_costs.py"
    spec = importlib.util.spec_from_file_location("model_costs", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(models, "list_models", lambda: ["resnet18", "se-resnet50"])
    assert script.PATH.name == COSTS_NAME
    assert set(script.costs_text().splitlines()) <= set(script.PATH.read_text().splitlines())
