import json

import yaml

from image_classification.config import explanation, resolve, to_dict, to_yaml


def test_sections_and_keys_are_those_of_the_contract() -> None:
    content = to_dict(resolve("resnet50", "AMP", "convergence", "DGX1V"))
    for section, keys in {
        "model": "name num_classes memory_format init",
        "data": "path backend format image_size resize interpolation workers augmentation",
        "batch": "per_device global accumulation",
        "optim": "name lr momentum weight_decay decay_rule",
        "schedule": "name epochs warmup_epochs end_lr",
        "loss": "label_smoothing",
        "mixing": "mixup cutmix",
        "ema": "decay",
        "precision": "name dtype loss_scale",
        "platform": "name device num_devices num_nodes",
        "run": "mode seed workspace resume stop_epoch max_steps",
    }.items():
        assert set(keys.split()) <= set(content[section])
    assert content["batch"] == {"per_device": 256, "global": 2048, "accumulation": 1}


def test_explanation_has_exactly_the_four_parts() -> None:
    told = explanation(resolve("resnet50", "AMP", "convergence", "CPU"))
    assert list(told) == ["name", "config", "provenance", "warnings"]
    assert told["name"] == {
        "model": "resnet50",
        "precision": "AMP",
        "mode": "convergence",
        "platform": "CPU",
        "recipe": "8e",
    }
    assert json.loads(json.dumps(told)) == told
    keys = {f"{s}.{k}" for s, content in told["config"].items() for k in content}
    assert keys == set(told["provenance"])


def test_yaml_reads_back_as_the_same_values_with_origins_beside_them() -> None:
    config = resolve(
        "resnet50",
        "AMP",
        "convergence",
        "CPU",
        overrides={"run.workspace": "a: #b", "optim.weight_decay": 5e-5},
    )
    text = to_yaml(config)
    read = yaml.safe_load(text)
    for section, content in to_dict(config).items():
        assert read[section] == content
    assert read["name"]["platform"] == "CPU"
    assert read["warnings"] == list(config.warnings)
    (line,) = [line for line in text.splitlines() if line.startswith("  epochs: ")]
    assert line.endswith(", recipe 8e")
    assert "# configs.yml:" in line
