import json
from pathlib import Path

import pytest

from image_classification.config.catalogue import ListedRun, load_catalogue
from image_classification.config.resolve import resolve
from image_classification.config.schema import MODES, PRECISIONS, RunConfig
from image_classification.models import list_models
from tests.support.golden_configs import dump_golden, golden_configs, without_line

GOLDEN = Path(__file__).parents[2] / "golden" / "configs" / "runs.json"
RUNS = list(load_catalogue().runs())
NVIDIA_MODELS = ("resnet50", "resnext101-32x4d", "se-resnext101-32x4d")
NVIDIA_PLATFORMS = ("DGX1V-16G", "DGX1V-32G", "DGX1V", "DGX2V", "DGXA100", "T4")
TODAY = ("A100", "H100", "DGXH100", "H200", "DGXH200", "B200", "DGXB200")


def resolved(run: ListedRun) -> RunConfig:
    return resolve(run.model, run.precision, "convergence", run.platform, run.recipe)


def by_default(model: str, platform: str, precision: str, recipe: str | None = None) -> RunConfig:
    return resolve(model, precision, "convergence", platform, recipe)


def test_names_are_those_of_the_contract() -> None:
    catalogue = load_catalogue()
    assert set(catalogue.precisions) == set(PRECISIONS)
    assert set(catalogue.modes) == set(MODES)
    assert set(catalogue.models) == set(list_models())
    assert set(catalogue.platforms) >= {
        *NVIDIA_PLATFORMS,
        *TODAY,
        *("CPU", "GPU", "GAUDI", "GAUDI2", "BI-V100x1", "BI-V100x4", "BI-V100x8", "BI-V100x16"),
    }


def test_every_model_has_a_cpu_demo_configuration() -> None:
    for model in list_models():
        for precision in ("AMP", "BF16", "FP32"):
            config = by_default(model, "CPU", precision)
            assert config.data.path == "demo"
            assert config.model.num_classes == 10
            assert config.precision.loss_scale is None


def test_every_model_has_a_configuration_for_any_gpu() -> None:
    for model in list_models():
        for precision in PRECISIONS:
            config = by_default(model, "GPU", precision)
            assert config.model.num_classes == 1000 and config.batch.fit_memory
            assert config.precision.loss_scale == (128.0 if precision == "AMP" else None)


def test_every_platform_is_described() -> None:
    assert all(block.about for block in load_catalogue().platforms.values())


@pytest.mark.parametrize("model", NVIDIA_MODELS)
def test_every_nvidia_platform_has_three_recipes_with_250e_the_default(model: str) -> None:
    for platform in (*NVIDIA_PLATFORMS, *TODAY):
        listed = [r for r in RUNS if (r.model, r.platform) == (model, platform)]
        assert listed
        for precision in {r.precision for r in listed}:
            recipes = {r.recipe: r.default for r in listed if r.precision == precision}
            assert recipes == {"50e": False, "90e": False, "250e": True}


def test_batches_divide_in_every_entry() -> None:
    for run in RUNS:
        batch, world = resolved(run).batch, resolved(run).world_size
        assert batch.per_device_batch * world * batch.accumulation == batch.global_batch, run


def test_every_run_has_a_published_source_or_an_assumption() -> None:
    for run in RUNS:
        config = resolved(run)
        assumed = any(w.startswith("assumption: ") for w in config.warnings)
        assert config.sources or assumed, run


def test_modes_change_run_control_and_data_source_only() -> None:
    for platform in ("DGXA100", "CPU", "BI-V100x1"):
        base = resolve("resnet50", "AMP", "convergence", platform)
        for mode in MODES:
            other = resolve("resnet50", "AMP", mode, platform)
            for section in ("model", "batch", "optim", "schedule", "loss", "mixing", "ema"):
                assert getattr(other, section) == getattr(base, section), (mode, section)
            assert other.precision == base.precision
            assert other.data.image_size == base.data.image_size


def test_settings_special_to_nvidias_published_runs() -> None:
    for run in RUNS:
        if run.platform not in NVIDIA_PLATFORMS:
            continue
        config = resolved(run)
        assert config.optim.decay_rule == "legacy_bn_name"
        assert config.optim.momentum == 0.875
        assert config.schedule.warmup_epochs == 8
        assert config.loss.label_smoothing == 0.1
        assert config.mixing.mixup == (0.2 if run.recipe == "250e" else 0.0)
        assert config.model.init == "fan_in"
        assert not config.model.zero_init_last_gamma
        assert (config.model.memory_format == "nhwc") == (run.precision in ("AMP", "BF16"))
        assert config.precision.loss_scale == (128.0 if run.precision == "AMP" else None)
        assert config.model.se_reduction == ("fixed16" if run.model.startswith("se-") else "paper")


@pytest.mark.parametrize(
    ("model", "platform", "precision", "per_device", "global_batch", "lr", "weight_decay"),
    [
        ("resnet50", "DGX1V", "AMP", 256, 2048, 2.048, 2**-15),
        ("resnet50", "DGX1V", "FP32", 112, 896, 0.896, 2**-14),
        ("resnet50", "DGX2V", "AMP", 256, 4096, 4.096, 2**-15),
        ("resnet50", "DGXA100", "TF32", 256, 2048, 2.048, 2**-15),
        ("resnet50", "T4", "FP32", 128, 2048, 2.048, 2**-15),
        ("resnext101-32x4d", "DGX1V-32G", "FP32", 64, 1024, 1.024, 2**-14),
        ("se-resnext101-32x4d", "DGX1V-16G", "AMP", 112, 896, 0.896, 2**-14),
        ("resnet50", "BI-V100x8", "AMP", 480, 3840, 0.1, 1e-4),
        ("resnet50", "BI-V100x16", "FP32", 300, 4800, 0.1, 1e-4),
        ("resnet50", "GAUDI", "BF16", 256, 2048, 0.1, 1e-4),
        ("resnet50", "H200", "AMP", 256, 2048, 2.048, 2**-15),
        ("resnet50", "CPU", "AMP", 32, 32, 0.05, 5e-5),
    ],
)
def test_published_batches_and_rates(
    model: str,
    platform: str,
    precision: str,
    per_device: int,
    global_batch: int,
    lr: float,
    weight_decay: float,
) -> None:
    config = by_default(model, platform, precision)
    assert config.batch.per_device_batch == per_device
    assert config.batch.global_batch == global_batch
    assert (config.optim.lr, config.optim.weight_decay) == (lr, weight_decay)


def test_the_fifty_epoch_fp32_run_of_dgx1v_has_its_own_published_batch() -> None:
    batch = by_default("resnet50", "DGX1V", "FP32", "50e").batch
    assert (batch.per_device_batch, batch.global_batch, batch.accumulation) == (128, 2048, 2)


def test_bi_v100_has_its_own_crop_schedule_and_seed() -> None:
    config = by_default("resnet50", "BI-V100x16", "FP32")
    assert (config.platform.num_devices, config.platform.num_nodes) == (8, 2)
    assert (config.data.crop_area_max, config.data.hflip_prob) == (1.25, 0.0)
    assert (config.data.resize, config.data.resize_mode) == (224, "squash")
    assert (config.schedule.name, config.schedule.milestone_epochs) == ("step", (30.0, 60.0))
    assert config.run.seed == 42


def test_gaudi_runs_the_published_list_of_rates() -> None:
    config = by_default("resnet50", "GAUDI2", "BF16")
    assert config.schedule.name == "list"
    assert config.schedule.milestone_lrs[0] == 0.275
    assert config.platform.device == "hpu"


def test_single_devices_keep_the_global_batch_by_accumulation() -> None:
    assert by_default("resnet50", "H100", "AMP").batch.accumulation == 8
    assert by_default("resnet50", "DGXH100", "AMP").batch.accumulation == 1


def test_every_listed_run_resolves_as_in_the_golden_file() -> None:
    stored, now = json.loads(GOLDEN.read_text(encoding="utf-8")), golden_configs()
    assert list(now["runs"]) == list(stored["runs"])
    assert len(now["runs"]) == len(RUNS)
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
