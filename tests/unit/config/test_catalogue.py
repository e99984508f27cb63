from pathlib import Path

import pytest

from image_classification.config.catalogue import Catalogue, Located, load_catalogue, load_yaml
from image_classification.config.resolve import resolve
from image_classification.core.errors import ConfigError

MINIMAL = """\
defaults:
  data.path: /data
precisions:
  FP32: {precision.dtype: float32}
platforms:
  BOX: {platform.device: cpu}
recipes:
  90e: {schedule.epochs: 90}
  30e: {schedule.epochs: 30}
modes:
  convergence: {run.log_every_steps: 7}
models:
  net:
    BOX:
      FP32:
        batch.per_device: 8
        batch.global: 16
        optim.lr: 0.1
        optim.weight_decay: 1e-4
        sources: run-1
        assumptions: [first, second]
        default_recipe: 30e
        recipes:
          30e:
          90e: {optim.lr: 0.2, sources: run-2}
"""


def load(tmp_path: Path, text: str) -> Catalogue:
    path = tmp_path / "c.yml"
    path.write_text(text, encoding="utf-8")
    return load_catalogue(path)


def refuse(tmp_path: Path, old: str, new: str) -> str:
    assert old in MINIMAL
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, MINIMAL.replace(old, new))
    return caught.value.message.replace(str(tmp_path), "")


def test_the_origins_name_a_custom_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    load(tmp_path, MINIMAL)
    config = resolve("net", "FP32", "convergence", "BOX", config_file=path)
    assert config.names.recipe == "30e"
    assert config.optim.lr == 0.1
    assert config.optim.weight_decay == 1e-4
    assert config.batch.accumulation == 2
    assert config.provenance["optim.lr"] == f"{path}:18, net BOX FP32"
    assert config.provenance["schedule.epochs"] == f"{path}:9, recipe 30e"
    assert config.sources == ("run-1",)
    assert config.warnings == ("assumption: first", "assumption: second")


def test_a_recipes_own_settings_come_after_the_shared_ones(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    load(tmp_path, MINIMAL)
    config = resolve("net", "FP32", "convergence", "BOX", "90e", config_file=path)
    assert (config.schedule.epochs, config.optim.lr) == (90, 0.2)
    assert config.provenance["optim.lr"] == f"{path}:25, recipe 90e of net BOX FP32"
    assert config.sources == ("run-1", "run-2")


def test_runs_list_every_combination_with_its_default(tmp_path: Path) -> None:
    runs = list(load(tmp_path, MINIMAL).runs())
    assert [(r.recipe, r.default) for r in runs] == [("90e", False), ("30e", True)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optim.weight_decay", "optim.weight_decya", "/c.yml:19: unknown key"),
        ("optim.lr: 0.1", "optim.lr: fast", "/c.yml:18: optim.lr must be a number, got 'fast'"),
        ("optim.lr: 0.1", "optim.lr: -1", "/c.yml:18: optim.lr must be 0 or more"),
        ("optim.lr: 0.1", "optim.lr: {a: 1}", "/c.yml:18: optim.lr must be a value"),
        ("optim.lr: 0.1", "data.mean: [[1], 2, 3]", "/c.yml:18: data.mean must be a plain value"),
        ("optim.lr: 0.1", "model.name: x", "/c.yml:18: model.name is set by --model; use that"),
        ("optim.lr: 0.1", "batch.accumulation: 2", "/c.yml:18: batch.accumulation is computed"),
        ("sources: run-1", "source: run-1", "/c.yml:20: unknown key 'source'; did you mean"),
        ("default_recipe: 30e", "default_recipe: 31e", "/c.yml:22: unknown default_recipe"),
        ("        default_recipe: 30e\n", "", "/c.yml:16: the entry has no 'default_recipe'"),
        ("          30e:\n", "          31e:\n", "/c.yml:24: unknown recipe '31e'"),
        ("defaults:", "defualts:", "/c.yml:2: unknown section 'defualts'; did you mean"),
        ("  FP32: {precision", "  FP31: {precision", "/c.yml:4: unknown precision 'FP31'"),
        ("  convergence:", "  converge:", "/c.yml:11: unknown mode 'converge'"),
        ("    BOX:\n", "    BOXX:\n", "/c.yml:15: unknown platform 'BOXX'; did you mean 'BOX'?"),
        ("run.log_every_steps: 7", "optim.lr: 7", "/c.yml:11: mode convergence may set run.*"),
        ("run.log_every_steps: 7", "run.mode: evaluate", "/c.yml:11: run.mode is set by --mode"),
        ("assumptions: [first, second]", "assumptions: {a: b}", "/c.yml:21: assumptions must be"),
        ("  net:\n", "  net: 3\n  other:\n", "/c.yml:13: platform must be a mapping"),
    ],
)
def test_an_invalid_file_is_an_error_with_file_and_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert refuse(tmp_path, old, new).startswith(message)


def test_the_message_for_a_misspelled_key(tmp_path: Path) -> None:
    message = refuse(tmp_path, "optim.weight_decay", "optim.weight_decya")
    assert message == ("/c.yml:19: unknown key 'optim.weight_decya'; did you mean 'weight_decay'?")


def test_an_entry_without_a_required_key_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text(MINIMAL.replace("        optim.weight_decay: 1e-4\n", ""), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"net BOX FP32 has no value for optim\.weight_decay"):
        resolve("net", "FP32", "convergence", "BOX", config_file=path)


def test_an_error_in_another_entry_is_found_too(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text(MINIMAL + "  other:\n    BOX:\n      FP32: {optim.lrr: 1}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yml:28: unknown key 'optim\.lrr'"):
        resolve("net", "FP32", "convergence", "BOX", config_file=path)


def read_yaml(tmp_path: Path, text: str) -> Located:
    path = tmp_path / "f.yml"
    path.write_text(text, encoding="utf-8")
    return load_yaml(path, "f.yml")


def child(at: Located, *keys: str) -> Located:
    for key in keys:
        assert isinstance(at.value, dict)
        at = at.value[key]
    return at


def test_every_value_has_its_line(tmp_path: Path) -> None:
    root = read_yaml(tmp_path, "a: 1\nb:\n  c: text\n  d: [1.5,\n      true]\n")
    assert child(root, "a") == Located(1, "f.yml:1", "1")
    assert child(root, "b", "c").where == "f.yml:3"
    items = child(root, "b", "d").value
    assert isinstance(items, list)
    assert [(i.value, i.where) for i in items] == [(1.5, "f.yml:4"), (True, "f.yml:5")]


def test_a_merged_value_keeps_the_line_it_is_written_on(tmp_path: Path) -> None:
    root = read_yaml(tmp_path, "base: &b\n  x: 1\n  y: 2\nuse:\n  <<: *b\n  y: 3\n")
    assert child(root, "use", "x") == Located(1, "f.yml:2", "1")
    assert child(root, "use", "y") == Located(3, "f.yml:6", "3")


def test_earlier_mappings_of_a_merge_list_win(tmp_path: Path) -> None:
    root = read_yaml(tmp_path, "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nuse:\n  <<: [*a, *b]\n")
    assert child(root, "use", "x").value == 1
    assert child(root, "use", "y").value == 2


def test_an_own_key_wins_over_a_merge_that_follows_it(tmp_path: Path) -> None:
    root = read_yaml(tmp_path, "a: &a {x: 1}\nuse:\n  x: 5\n  <<: *a\n")
    assert child(root, "use", "x").value == 5


def test_the_text_of_a_scalar_is_as_written(tmp_path: Path) -> None:
    at = child(read_yaml(tmp_path, "a: no\n"), "a")
    assert (at.value, at.text) == (False, "no")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yml:3: 'a' is already set on line 1; keep one"),
        ("a: [1\nb: 2\n", "f.yml:2: not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "f.yml:1: the tag"),
        ("a: !thing x\n", "f.yml:1: the tag '!thing' is not allowed"),
        ("a: !!bool x\n", "f.yml:1: 'x' is not a valid bool"),
        ("a: !!int ''\n", "f.yml:1: '' is not a valid int"),
        ("a: &x\n  b: *x\n", "f.yml:1: this anchor contains itself"),
        ("a: &x [1, *x]\n", "f.yml:1: this anchor contains itself"),
        ("a: 1\nb:\n  <<: 3\n", "f.yml:3: << must name a mapping"),
        ("[1]: 2\n", "f.yml:1: a key must be plain text"),
        ("# nothing\n", "f.yml: the file is empty"),
        ("a: *nowhere\n", "f.yml:1: not valid YAML: found undefined alias"),
    ],
)
def test_invalid_yaml_is_an_error_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path, text)
    assert caught.value.message.startswith(message)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*--cfg_file"):
        load_yaml(tmp_path / "none.yml", "none.yml")


def test_a_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "f.yml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match=r"f\.yml: not UTF-8 text at byte 3"):
        load_yaml(path, "f.yml")
