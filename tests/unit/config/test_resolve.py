import dataclasses
import pickle
from pathlib import Path

import pytest

from image_classification.config import RunConfig, resolve
from image_classification.config.catalogue import DEFAULT_FILE
from image_classification.config.keys import KEYS, Override, read_setting
from image_classification.core.errors import ConfigError, DeviceError
from image_classification.core.types import DevicesFound

V100 = "Tesla V100-SXM2-16GB"


def dgx1v(mode: str = "convergence", **kwargs: object) -> RunConfig:
    return resolve("resnet50", "AMP", mode, "DGX1V", **kwargs)  # type: ignore[arg-type]


def cuda(count: int, name: str = V100) -> DevicesFound:
    return DevicesFound("cuda", (name,) * count)


def refused(**kwargs: object) -> str:
    with pytest.raises(ConfigError) as caught:
        dgx1v(**kwargs)  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    return caught.value.message


def test_every_key_has_a_value_and_an_origin() -> None:
    config = dgx1v()
    assert set(config.provenance) == set(KEYS)
    assert config.provenance["run.topk"] == "default (schema)"
    assert config.provenance["batch.accumulation"] == "formula: 2048 / (256 x 8)"
    assert config.provenance["schedule.epochs"].endswith(", recipe 250e")
    assert config.provenance["optim.lr"].endswith(", resnet50 DGX1V AMP")
    assert config.provenance["model.name"] == "--model"
    assert config.warnings == ()
    assert config.sources == ("nvidia-resnet50-dgx1v-amp-250e",)


def test_a_config_is_frozen_and_can_be_pickled() -> None:
    config = dgx1v()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optim.lr = 1.0  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_recipe_is_chosen_by_name() -> None:
    config = dgx1v(recipe="90e")
    assert (config.schedule.epochs, config.mixing.mixup) == (90, 0.0)
    assert config.names.recipe == "90e"
    assert "did you mean '90e'" in refused(recipe="91e")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("resnet5", "AMP", "convergence", "DGX1V"), "unknown model 'resnet5'; did you mean"),
        (("resnet50", "FP8", "convergence", "DGX1V"), "unknown precision 'FP8'"),
        (("resnet50", "AMP", "converge", "DGX1V"), "unknown mode 'converge'; did you mean"),
        (("resnet50", "AMP", "convergence", "dgx1w"), "did you mean 'DGX1V'?"),
        (("resnet50", "TF32", "convergence", "DGX1V"), "it has AMP, FP32"),
        (("resnet34", "AMP", "convergence", "DGX1V"), "resnet34 on DGX1V; it has CPU"),
    ],
)
def test_unknown_names_and_missing_combinations(
    names: tuple[str, str, str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(*names)
    assert message in caught.value.message


def test_overrides_win_over_modes_which_win_over_recipes() -> None:
    assert dgx1v("benchmark_training").run.log_every_steps == 1
    config = dgx1v("benchmark_training", overrides={"run.log_every_steps": 5})
    assert config.run.log_every_steps == 5
    assert config.provenance["run.log_every_steps"] == "overrides argument"
    origin = Override("optim.lr", 1.5, "--lr on the command line")
    assert dgx1v(overrides=[origin]).provenance["optim.lr"] == "--lr on the command line"


def test_invalid_overrides() -> None:
    assert "did you mean 'weight_decay'" in refused(overrides={"optim.weight_decya": 1})
    assert "is set by --model" in refused(overrides={"model.name": "resnet18"})
    assert "is computed" in refused(overrides={"batch.accumulation": 2})
    twice = [Override("optim.lr", 1.0, "--lr"), Override("optim.lr", 2.0, "--set optim.lr=2")]
    assert "given twice: 1.0 (--lr) and 2.0" in refused(overrides=twice)
    same = [Override("optim.lr", 1.0, "--lr"), Override("optim.lr", 1.0, "--set optim.lr=1")]
    assert dgx1v(overrides=same).optim.lr == 1.0


def test_a_per_device_batch_keeps_the_global_batch() -> None:
    config = dgx1v(overrides={"batch.per_device": 64})
    assert (config.batch.global_batch, config.batch.accumulation) == (2048, 4)
    message = refused(overrides={"batch.per_device": 100})
    assert "2048 / (100 x 8) = 2.56" in message
    assert "--batch-size 64 or 128" in message


def test_a_global_batch_of_none_means_no_accumulation() -> None:
    origin = "--optimizer-batch-size on the command line"
    override = Override("batch.global", None, origin)
    config = dgx1v(overrides=[override, Override("batch.per_device", 100, "-b")])
    assert (config.batch.global_batch, config.batch.accumulation) == (800, 1)
    assert config.provenance["batch.global"] == f"{origin}: 100 x 8"


def test_modes_without_an_optimizer_step_accept_any_batch() -> None:
    for mode in ("evaluate", "benchmark_inference", "benchmark_data"):
        config = dgx1v(mode, overrides={"batch.per_device": 100})
        assert (config.batch.global_batch, config.batch.accumulation) == (800, 1)
        assert "no optimizer step" in config.provenance["batch.global"]


def test_amp_on_a_cpu_is_bfloat16_with_a_warning() -> None:
    config = resolve("resnet50", "AMP", "convergence", "CPU")
    assert (config.precision.dtype, config.precision.loss_scale) == ("bfloat16", None)
    assert config.provenance["precision.dtype"].startswith("AMP on a cpu is bfloat16: ")
    assert any(w.startswith("AMP on a cpu is bfloat16: ") for w in config.warnings)
    config = dgx1v(overrides={"platform.device": "cpu"})
    assert config.precision.dtype == "bfloat16"


def test_a_benchmark_that_ends_in_its_warmup_says_so() -> None:
    short = dgx1v("benchmark_training_short", overrides={"run.max_steps": 20})
    assert short.warnings[0].startswith("no training speed is measured: the run ends at step 20 ")
    assert not dgx1v("benchmark_training_short", overrides={"run.max_steps": 21}).warnings
    few = {"run.max_steps": 6, "run.benchmark_warmup_steps": 2}
    assert not dgx1v("benchmark_training_short", overrides=few).warnings


def test_amp_in_bfloat16_has_no_loss_scale() -> None:
    config = dgx1v(overrides={"precision.dtype": "bfloat16"})
    assert config.precision.loss_scale is None


def test_loss_scaling_is_for_float16_only() -> None:
    assert dgx1v(overrides={"precision.loss_scale": "dynamic"}).precision.loss_scale == "dynamic"
    for platform, precision in (("DGX1V", "FP32"), ("CPU", "AMP"), ("A100", "BF16")):
        with pytest.raises(ConfigError, match=r"loss_scale 128 .* only for float16"):
            resolve(
                "resnet50",
                precision,
                "convergence",
                platform,
                overrides={"precision.loss_scale": 128},
            )


def test_a_dtype_must_fit_the_precision_name() -> None:
    with pytest.raises(ConfigError, match="use --precision BF16"):
        resolve(
            "resnet50", "FP32", "convergence", "DGX1V", overrides={"precision.dtype": "bfloat16"}
        )


def test_the_data_argument() -> None:
    config = dgx1v(data="synthetic")
    assert (config.data.backend, config.data.path) == ("synthetic", "synthetic")
    config = dgx1v(data="demo")
    assert (config.data.backend, config.data.path) == ("dali-cpu", "demo")
    assert config.data.image_size == 224
    assert dgx1v(data="/data/imagenet").data.path == "/data/imagenet"
    assert dgx1v().data.path == "/imagenet"
    assert "leave one of them out" in refused(
        data="synthetic", overrides={"data.backend": "pytorch"}
    )


def test_a_folder_that_is_not_read_is_a_warning() -> None:
    config = dgx1v("benchmark_training_short", data="/imagenet")
    assert (config.data.backend, config.data.path) == ("synthetic", "synthetic")
    assert any(w.startswith("/imagenet is not read") for w in config.warnings)
    real = dgx1v("benchmark_training_short", data="/in", overrides={"data.backend": "pytorch"})
    assert (real.data.backend, real.data.path, real.warnings) == ("pytorch", "/in", ())


def test_another_image_size_keeps_the_margin_of_the_validation_resize() -> None:
    config = dgx1v(overrides={"data.image_size": 288})
    assert config.data.resize == 320
    assert config.provenance["data.resize"] == "formula: 288 + (256 - 224)"
    both = dgx1v(overrides={"data.image_size": 288, "data.resize": 300})
    assert both.data.resize == 300
    assert "set both" in refused(overrides={"data.image_size": 288, "data.resize": 256})


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"schedule.epochs": 5}, "shorter than schedule.warmup_epochs 8"),
        ({"data.crop_area_min": 1.5}, "data.crop_area_min 1.5"),
        ({"optim.nesterov": True, "optim.name": "rmsprop"}, "optim.nesterov needs"),
        ({"schedule.name": "exponential"}, "set --end-lr above 0"),
        ({"schedule.name": "list"}, "one learning rate for each milestone"),
        ({"schedule.milestone_epochs": [60, 30]}, "must ascend"),
        ({"data.std": [0.2, 0.2, 0]}, "above 0 everywhere"),
        ({"precision.loss_scale": 0}, "must be above 0"),
    ],
)
def test_values_that_contradict_each_other(overrides: dict[str, object], part: str) -> None:
    assert part in refused(overrides=overrides)


def test_fewer_devices_keep_the_global_batch_with_a_warning() -> None:
    config = dgx1v(available=cuda(2))
    assert config.world_size == 2
    assert (config.batch.global_batch, config.batch.accumulation) == (2048, 4)
    assert config.provenance["platform.num_devices"] == "devices found (DGX1V: 8)"
    assert config.warnings == (
        "DGX1V has 8 cuda devices, this run 2 cuda devices: "
        "throughput is not comparable with published figures",
    )


def test_the_published_machine_raises_no_warning() -> None:
    assert dgx1v(available=cuda(8)).warnings == ()
    assert dgx1v(available=cuda(16)).world_size == 8


def test_other_devices_are_named() -> None:
    (warning,) = dgx1v(available=cuda(8, "NVIDIA H200")).warnings
    assert warning.startswith("DGX1V has V100-SXM2-16GB devices, this machine NVIDIA H200: ")


def test_device_names_are_compared_by_whole_words() -> None:
    found = DevicesFound("cuda", ("NVIDIA T400 4GB",))
    config = resolve("resnet50", "AMP", "convergence", "T4", available=found)
    assert any("this machine NVIDIA T400" in w for w in config.warnings)


def test_a_device_count_that_does_not_divide_the_global_batch() -> None:
    message = refused(available=cuda(3))
    assert "2048 / (256 x 3)" in message
    assert "--devices 2 on one node" in message
    assert dgx1v(available=cuda(3), overrides={"platform.num_devices": 2}).world_size == 2


def test_without_a_gpu_the_error_names_the_alternatives() -> None:
    for found in (cuda(0), DevicesFound("cpu", ("EPYC",))):
        with pytest.raises(DeviceError) as caught:
            dgx1v(available=found)
        for part in ("DGX1V", "--platform CPU", "--set platform.device=cpu"):
            assert part in caught.value.message


def test_more_devices_than_there_are_is_an_error() -> None:
    with pytest.raises(DeviceError, match=r"num_devices is 4 .* has 2; ask for 2 or fewer"):
        dgx1v(available=cuda(2), overrides={"platform.num_devices": 4})


def test_a_gpu_platform_on_the_cpu() -> None:
    config = dgx1v(overrides={"platform.device": "cpu"}, available=DevicesFound("cpu", ("EPYC",)))
    assert (config.world_size, config.batch.accumulation) == (1, 8)
    assert "platform.device is cpu" in config.provenance["platform.num_devices"]
    assert any("not comparable" in w for w in config.warnings)
    config = dgx1v(overrides={"platform.device": "cpu", "platform.num_devices": 2})
    assert (config.world_size, config.batch.accumulation) == (2, 4)


def test_naming_the_platforms_own_device_changes_nothing() -> None:
    config = dgx1v(overrides={"platform.device": "cuda", "platform.num_devices": 8})
    assert (config.world_size, config.warnings) == (8, ())


def test_more_processes_share_the_global_batch() -> None:
    config = resolve(
        "resnet50", "FP32", "convergence", "CPU", overrides={"platform.num_devices": 2}
    )
    assert (config.batch.per_device_batch, config.batch.global_batch) == (16, 32)
    assert config.batch.accumulation == 1
    assert any(w.startswith("16 images per device instead of 32") for w in config.warnings)
    assert "--devices 16" not in refused(
        overrides={"platform.num_devices": 16, "batch.per_device": 256}
    )


def test_processes_already_started_determine_the_device_count() -> None:
    config = dgx1v(available=cuda(4), world_size=4)
    assert (config.world_size, config.batch.accumulation) == (4, 2)
    assert config.provenance["platform.num_devices"] == "the processes started"
    (warning,) = config.warnings
    assert warning.startswith("DGX1V has 8 processes, this run 4: ")
    assert dgx1v(available=cuda(8), world_size=8).warnings == ()
    two = resolve("resnet50", "FP32", "convergence", "BI-V100x16", world_size=16, num_nodes=2)
    assert (two.platform.num_devices, two.platform.num_nodes) == (8, 2)


def test_processes_already_started_that_contradict_the_settings() -> None:
    message = refused(overrides={"platform.num_devices": 2}, world_size=4)
    assert "platform.num_devices is 2" in message
    assert "start the same number on each node" in refused(world_size=3, num_nodes=2)


def test_a_two_node_platform_on_one_node() -> None:
    found = DevicesFound("cuda", ("Iluvatar BI-V100",) * 8)
    config = resolve("resnet50", "FP32", "convergence", "BI-V100x16", available=found)
    assert (config.world_size, config.batch.accumulation) == (8, 2)
    assert any("2 nodes of 8 cuda devices, this run 8 cuda devices" in w for w in config.warnings)


def gpu(model: str = "resnet50", **kwargs: object) -> RunConfig:
    return resolve(model, "AMP", "convergence", "GPU", **kwargs)  # type: ignore[arg-type]


def test_platform_gpu_uses_all_visible_devices_and_keeps_the_global_batch() -> None:
    for count in (1, 2, 4, 8):
        config = gpu(available=cuda(count, "NVIDIA GeForce RTX 4090"))
        assert config.world_size == count and config.batch.fit_memory
        assert (config.batch.global_batch, config.batch.accumulation) == (2048, 8 // count)
        assert config.provenance["platform.num_devices"].endswith(": all visible devices")
        assert all(warning.startswith("assumption: ") for warning in config.warnings)
    assert gpu(available=cuda(16)).batch.per_device_batch == 128
    assert gpu().provenance["platform.num_devices"].endswith("1 is assumed")


def test_the_number_of_devices_can_be_given() -> None:
    config = gpu(available=cuda(8), overrides={"platform.num_devices": 2})
    assert (config.world_size, config.batch.accumulation) == (2, 4)
    config = dgx1v(available=cuda(4), overrides={"platform.num_devices": "all"})
    assert config.world_size == 4
    assert config.warnings[0].startswith("DGX1V is run on 4 cuda devices, as the command line says")
    with pytest.raises(DeviceError, match=r"is 2 .* has 1; ask for 1 or fewer"):
        gpu(available=cuda(1), overrides={"platform.num_devices": 2})
    with pytest.raises(ConfigError, match="'all' counts GPUs; on a CPU give the number"):
        resolve("resnet50", "FP32", "convergence", "CPU", overrides={"platform.num_devices": "all"})


def test_processes_already_started_on_platform_gpu() -> None:
    config = gpu(available=cuda(4), world_size=8, num_nodes=2)
    assert (config.platform.num_devices, config.platform.num_nodes) == (4, 2)
    assert not any("not comparable" in warning for warning in config.warnings)


def test_a_batch_that_the_user_gives_is_not_fitted_to_the_memory() -> None:
    config = gpu(available=cuda(1), overrides={"batch.per_device": 64})
    assert (config.batch.per_device_batch, config.batch.fit_memory) == (64, False)
    assert not gpu(overrides={"platform.device": "cpu"}).batch.fit_memory
    with pytest.raises(ConfigError, match="is for GPUs"):
        gpu(overrides={"platform.device": "cpu", "batch.fit_memory": True})


def test_notes_come_first_among_the_warnings() -> None:
    assert dgx1v(notes=["look"], available=cuda(2)).warnings[0] == "look"


def test_apex_where_it_is_supported() -> None:
    apex = {"precision.amp_backend": "apex", "optim.implementation": "apex"}
    config = dgx1v(overrides=apex)
    assert (config.precision.amp_backend, config.optim.implementation) == ("apex", "apex")
    assert config.precision.dtype == "float16"
    fp32 = resolve(
        "resnet50", "FP32", "convergence", "DGX1V", overrides={"optim.implementation": "apex"}
    )
    assert fp32.optim.implementation == "apex"
    with pytest.raises(ConfigError, match=r"AMP in float16.*TF32 in float32.*use --precision AMP"):
        resolve(
            "resnet50",
            "TF32",
            "convergence",
            "DGXA100",
            overrides={"precision.amp_backend": "apex"},
        )


def test_settings_of_an_active_augmentation_policy() -> None:
    values = {"randaugment_magnitude": 12, "randaugment_ops": 3, "augmentation_fill": 0}
    overrides = {f"data.{key}": value for key, value in values.items()}
    data = dgx1v(overrides=overrides | {"data.augmentation": "randaugment"}).data
    assert {key: getattr(data, key) for key in values} == values
    config = dgx1v(overrides={"data.augmentation": "trivialaugment", "data.augmentation_fill": 0})
    assert config.data.augmentation_fill == 0


def test_the_user_may_switch_off_the_policy_of_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "c.yml"
    text = DEFAULT_FILE.read_text(encoding="utf-8")
    policy = "  250e: {data.augmentation: randaugment, data.randaugment_ops: 3, "
    assert "  250e: {" in text
    file.write_text(text.replace("  250e: {", policy, 1), encoding="utf-8")
    assert dgx1v(config_file=file).data.randaugment_ops == 3
    data = dgx1v(config_file=file, overrides={"data.augmentation": "none"}).data
    assert (data.augmentation, data.randaugment_ops) == ("none", 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.randaugment_magnitude=12", "set data.augmentation to randaugment or leave it out"),
        ("data.randaugment_ops=3 data.augmentation=autoaugment", "with data.augmentation autoaug"),
        ("data.augmentation_fill=0", "set data.augmentation to a policy or leave it out"),
        ("precision.amp_backend=apex precision.dtype=bfloat16", "set precision.dtype=float16"),
        ("precision.amp_backend=apex platform.device=cpu", "needs an NVIDIA GPU and this run is"),
        ("precision.amp_backend=apex model.compile=true", "or set model.compile=false"),
        ("optim.implementation=apex platform.device=cpu", "needs an NVIDIA GPU and this run is"),
        ("optim.implementation=apex optim.name=rmsprop", "has no rmsprop (overrides argument)"),
    ],
)
def test_settings_that_have_no_effect_or_no_implementation(settings: str, message: str) -> None:
    overrides = [
        dataclasses.replace(read_setting(setting), origin="overrides argument")
        for setting in settings.split()
    ]
    assert message in refused(overrides=overrides)
