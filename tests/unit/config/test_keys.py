import json
from typing import Any

import pytest
import yaml

from image_classification.config.keys import (
    KEYS,
    explanation,
    find_key,
    read_setting,
    to_dict,
    to_yaml,
)
from image_classification.config.resolve import resolve
from image_classification.core.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.lr", "2", 2.0),
        ("optim.lr", "1e-4", 1e-4),
        ("schedule.epochs", "90", 90),
        ("optim.nesterov", "true", True),
        ("optim.nesterov", "no", False),
        ("data.path", "no", "no"),
        ("run.resume", "null", None),
        ("ema.decay", "none", None),
        ("precision.loss_scale", "dynamic", "dynamic"),
        ("precision.loss_scale", "128", 128.0),
        ("data.mean", "0.5,0.5,0.25", (0.5, 0.5, 0.25)),
        ("schedule.milestone_epochs", "[30, 60]", (30.0, 60.0)),
        ("schedule.milestone_lrs", "[]", ()),
        ("run.inference_batches", "1,8", (1, 8)),
        ("run.save_every", "3 steps", "3 steps"),
    ],
)
def test_text_is_parsed_as_the_keys_type(key: str, text: str, value: Any) -> None:
    got = KEYS[key].parse(text, "--set")
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("optim.lr", "fast", "must be a number, got 'fast'"),
        ("optim.lr", True, "must be a number"),
        ("optim.lr", float("nan"), "must be a number"),
        ("optim.lr", "inf", "must be a number"),
        ("optim.lr", None, "must be a number, got null"),
        ("optim.lr", -0.1, "the nearest valid value is 0"),
        ("ema.decay", 1.5, "the nearest valid value is 1"),
        ("schedule.epochs", 90.0, "must be a whole number"),
        ("schedule.epochs", "90", "must be a whole number"),
        ("optim.nesterov", 1, "must be true or false"),
        ("model.memory_format", "nhcw", "did you mean 'nhwc'? (valid: nchw, nhwc)"),
        ("precision.loss_scale", "static", "a number or 'dynamic'"),
        ("data.mean", [0.5, 0.5], "must have 3 values, got 2"),
        ("data.mean", 0.5, "must be a list"),
        ("run.save_every", "3 bananas", "'N steps', 'N minutes' or 'N epochs'"),
        ("run.save_every", "0 steps", "'N steps', 'N minutes' or 'N epochs'"),
        ("run.save_every", "1.5 epochs", "'N steps', 'N minutes' or 'N epochs'"),
        ("run.checkpoint_name", "../elsewhere", "cannot be"),
        ("data.path", "", "must be text"),
    ],
)
def test_an_invalid_value_is_an_error_with_key_and_remedy(key: str, value: Any, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KEYS[key].check(value, "f.yml:7")
    assert caught.value.message.startswith(f"f.yml:7: {key} ")
    assert part in caught.value.message


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("optim.weight_decya", "did you mean 'weight_decay'?"),
        ("optin.lr", "did you mean 'optim.lr'?"),
        ("lr", "did you mean 'optim.lr'?"),
        ("epochs", "did you mean 'schedule.epochs'?"),
        ("optim", "is a section"),
        ("zzz.zzz", "sections are model, data"),
        ("ema.frobnicate", "ema has decay"),
    ],
)
def test_an_unknown_key_is_an_error_with_the_nearest_key(name: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_key(name, "here")
    assert part in caught.value.message


def test_batch_keys_differ_from_their_field_names() -> None:
    for name in ("batch.per_device", "batch.global", "batch.accumulation"):
        assert KEYS[name].section == "batch"
    assert KEYS["batch.global"].field == "global_batch"
    assert KEYS["batch.accumulation"].computed


def test_every_default_is_valid() -> None:
    for key in KEYS.values():
        if key.has_default and key.default not in ("", None):
            assert key.check(key.default, key.name) == key.default


def test_the_argument_of_set_is_the_origin_of_its_setting() -> None:
    override = read_setting("optim.lr=0.5")
    assert (override.key, override.value) == ("optim.lr", 0.5)
    assert override.origin == "--set optim.lr=0.5"
    assert read_setting("run.workspace=a=b").value == "a=b"
    for text, part in (("optim.lr", "write section.key=value"), ("lr=1", "did you mean")):
        with pytest.raises(ConfigError, match=part):
            read_setting(text)


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
    batch = {"per_device": 256, "global": 2048, "accumulation": 1, "fit_memory": False}
    assert content["batch"] == batch


def test_explanation_has_exactly_the_four_parts() -> None:
    found = explanation(resolve("resnet50", "AMP", "convergence", "CPU"))
    assert list(found) == ["name", "config", "provenance", "warnings"]
    assert found["name"] == {
        "model": "resnet50",
        "precision": "AMP",
        "mode": "convergence",
        "platform": "CPU",
        "recipe": "8e",
    }
    assert json.loads(json.dumps(found)) == found
    keys = {f"{s}.{k}" for s, content in found["config"].items() for k in content}
    assert keys == set(found["provenance"])


def test_yaml_has_the_values_and_their_origins_as_comments() -> None:
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
