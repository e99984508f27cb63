import json

from image_classification.cli.launch import render_explanation
from image_classification.config import explanation, resolve
from image_classification.config.keys import KEYS


def test_json_is_the_contracts() -> None:
    config = resolve("resnet50", "AMP", "convergence", "DGX1V")
    assert json.loads(render_explanation(config, as_json=True)) == explanation(config)


def test_the_table_has_every_key_with_value_and_origin() -> None:
    config = resolve(
        "resnet50", "AMP", "convergence", "DGX1V", overrides={"optim.weight_decay": 5e-5}
    )
    lines = render_explanation(config).splitlines()
    rows = {line.split()[0]: line.split(maxsplit=2) for line in lines if line and line[0] != " "}
    assert set(KEYS) <= set(rows)
    assert rows["optim.weight_decay"][1:] == ["5e-05", "overrides argument"]
    assert rows["batch.accumulation"][1:] == ["1", "formula: 2048 / (256 x 8)"]
    assert rows["run.resume"][1] == "null"
    assert rows["model.compile"][1] == "false"
    assert rows["data.mean"][1] == "[0.485,0.456,0.406]"
    assert "nvidia-resnet50-dgx1v-amp-250e" in [line.strip() for line in lines]


def test_columns_line_up() -> None:
    lines = render_explanation(resolve("resnet50", "AMP", "convergence", "CPU")).splitlines()
    head = next(line for line in lines if line.startswith("key "))
    at = head.index("where from")
    table = lines[lines.index(head) : lines.index("notes:")]
    assert all(line[at - 1] == " " and line[at] != " " for line in table if line)


def test_assumptions_and_substitutions_are_told() -> None:
    text = render_explanation(resolve("resnet50", "AMP", "convergence", "CPU"))
    assert "AMP on a cpu is bfloat16" in text
    assert "assumption: not a published run" in text
