from pathlib import Path

import pytest

from image_classification.config.catalogue import Catalogue, load_catalogue
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


def test_a_custom_file_resolves_and_names_itself_in_the_origins(tmp_path: Path) -> None:
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
        (
            "optim.weight_decay",
            "optim.weight_decya",
            "/c.yml:19: unknown key",
        ),
        ("optim.lr: 0.1", "optim.lr: fast", "/c.yml:18: optim.lr must be a number, got 'fast'"),
        ("optim.lr: 0.1", "optim.lr: -1", "/c.yml:18: optim.lr must be 0 or more"),
        ("optim.lr: 0.1", "optim.lr: {a: 1}", "/c.yml:18: optim.lr must be a value"),
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


def test_the_whole_message_for_a_misspelt_key(tmp_path: Path) -> None:
    message = refuse(tmp_path, "optim.weight_decay", "optim.weight_decya")
    assert message == ("/c.yml:19: unknown key 'optim.weight_decya'; did you mean 'weight_decay'?")


def test_an_entry_without_a_required_key_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text(MINIMAL.replace("        optim.weight_decay: 1e-4\n", ""), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"net BOX FP32 has no value for optim\.weight_decay"):
        resolve("net", "FP32", "convergence", "BOX", config_file=path)


def test_a_mistake_shows_whichever_run_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text(MINIMAL + "  other:\n    BOX:\n      FP32: {optim.lrr: 1}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yml:28: unknown key 'optim\.lrr'"):
        resolve("net", "FP32", "convergence", "BOX", config_file=path)
