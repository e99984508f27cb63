"""Command lines as NVIDIA DeepLearningExamples' ConvNets publish them, word for word.

Sources: the READMEs and training scripts of resnet50v1.5, resnext101-32x4d and
se-resnext101-32x4d, ``scripts/rn50_partial.sh``, and the PyTorch 20.06 scripts around
``main.py``. The words before the options (``python ./multiproc.py --nproc_per_node 8
./main.py``) are left out; lines for ``main.py``, which has no names, get mode, platform and
precision. Shell variables and ``<…>`` have values.
"""

import itertools

import pytest

from image_classification.cli.launch import parse
from image_classification.config.keys import to_dict
from image_classification.config.schema import RunConfig

PLATFORMS = {
    "resnet50": ("DGX1V", "DGX2V", "DGXA100"),
    "resnext101-32x4d": ("DGX1V", "DGXA100"),
    "se-resnext101-32x4d": ("DGX1V", "DGXA100"),
}
RUNS = [
    (model, platform, precision)
    for model, platforms in PLATFORMS.items()
    for platform in platforms
    for precision in ("AMP", "TF32" if platform == "DGXA100" else "FP32")
]

MAIN = [
    # resnet50v1.5/README.md, "Scripts and sample code" and "Inference process"
    "--arch resnet50 -c fanin --label-smoothing 0.1 /imagenet",
    "--arch resnet50 -c fanin --label-smoothing 0.1 --amp --static-loss-scale 256 /imagenet",
    "--arch resnet50 --evaluate --epochs 1 --resume /ckpt -b 256 /imagenet",
    "--arch resnet50 --evaluate --epochs 1 --pretrained-from-file "
    "nvidia_resnet50_200821.pth.tar -b 256 /imagenet",
    # The same sections of the two other READMEs.
    "--arch resnext101-32x4d -c fanin --label-smoothing 0.1 /imagenet",
    "--arch se-resnext101-32x4d -c fanin --label-smoothing 0.1 --amp --static-loss-scale 256 "
    "/imagenet",
    # scripts/rn50_partial.sh
    "/imagenet -j5 -p 100 --data-backend pytorch --raport-file report_2.json --lr 2.048 "
    "--batch-size 256 --optimizer-batch-size 2048 --static-loss-scale 128 --warmup 8 "
    "--arch resnet50 -c fanin --label-smoothing 0.1 --lr-schedule cosine --mom 0.875 "
    "--wd 3.0517578125e-05 --workspace /results --epochs 90 --run-epochs 10 --amp "
    "--resume /results/checkpoint_1.pth.tar --checkpoint checkpoint_2.pth.tar",
    # training/AMP/DGX1_RN50_AMP_50E.sh
    "/imagenet --data-backend dali-cpu --raport-file raport.json -j5 -p 100 --lr 2.048 "
    "--optimizer-batch-size 2048 --warmup 8 --arch resnet50 -c fanin --label-smoothing 0.1 "
    "--lr-schedule cosine --mom 0.875 --wd 3.0517578125e-05 --workspace ./ -b 256 --amp "
    "--static-loss-scale 128 --epochs 50",
    # training/AMP/DGX1_SE-RNXT101-32x4d_AMP_90E.sh
    "/imagenet --raport-file raport.json -j8 -p 100 --data-backend pytorch "
    "--arch se-resnext101-32x4d -c fanin --label-smoothing 0.1 --workspace /out -b 128 --amp "
    "--static-loss-scale 128 --optimizer-batch-size 1024 --lr 1.024 --mom 0.875 "
    "--lr-schedule cosine --epochs  90 --warmup 8 --wd 6.103515625e-05 --memory-format nhwc",
]
NAMES_OF_MAIN = "--mode {mode} --platform DGX1V --precision {precision}"
DECIDING = ("model", "data", "batch", "optim", "schedule", "loss", "mixing", "ema", "precision")


def resolve(line: str) -> RunConfig:
    return parse(line.split()).read().on()


def training_settings(config: RunConfig) -> dict[str, object]:
    content = to_dict(config)
    return {section: content[section] for section in DECIDING}


@pytest.mark.parametrize(("model", "platform", "precision"), RUNS)
def test_a_training_script_matches_its_named_recipe(
    model: str, platform: str, precision: str
) -> None:
    names = f"--model {model} --precision {precision} --mode convergence --platform {platform}"
    tail = "--workspace ./ --raport-file raport.json"
    long = resolve(f"{names} /imagenet {tail}")
    assert training_settings(long) == training_settings(resolve(f"{names} --recipe 250e"))
    short = resolve(f"{names} /imagenet --epochs 90 --mixup 0.0 {tail}")
    assert training_settings(short) == training_settings(resolve(f"{names} --recipe 90e"))
    assert (short.schedule.epochs, short.mixing.mixup) == (90, 0.0)
    assert (short.run.workspace, short.run.raport_file) == ("./", "raport.json")


@pytest.mark.parametrize(
    ("run", "mode"), list(itertools.product(RUNS, ("benchmark_training", "benchmark_inference")))
)
def test_a_benchmark_line_runs_100_iterations(run: tuple[str, str, str], mode: str) -> None:
    model, platform, precision = run
    config = resolve(
        f"--model {model} --precision {precision} --mode {mode} --platform {platform} "
        "/imagenet --raport-file benchmark.json --epochs 1 --prof 100"
    )
    training = mode == "benchmark_training"
    done = config.run.max_steps if training else config.run.inference_iterations
    assert (done, config.run.raport_file) == (100, "benchmark.json")
    assert config.schedule.epochs == 250
    assert any("--epochs 1 has no effect" in w for w in config.warnings) is not training


@pytest.mark.parametrize("line", MAIN)
def test_a_command_line_of_main_with_names_added(line: str) -> None:
    words = line.split()
    names = NAMES_OF_MAIN.format(
        mode="evaluate" if "--evaluate" in words else "convergence",
        precision="AMP" if "--amp" in words else "FP32",
    )
    config = resolve(f"{line} {names}")
    assert config.model.name == words[words.index("--arch") + 1]
    assert config.data.path == "/imagenet"
    for option, key in GIVEN.items():
        # Evaluating trains no epoch; the run says so.
        if option in words and not (option == "--epochs" and "--evaluate" in words):
            section, _, field = key.partition(".")
            given = words[words.index(option) + 1]
            value = getattr(getattr(config, section), field)
            assert value == type(value)(given), option


GIVEN = {
    "--lr": "optim.lr",
    "--mom": "optim.momentum",
    "--wd": "optim.weight_decay",
    "--epochs": "schedule.epochs",
    "--warmup": "schedule.warmup_epochs",
    "--run-epochs": "run.run_epochs",
    "--optimizer-batch-size": "batch.global_batch",
    "--batch-size": "batch.per_device_batch",
    "-b": "batch.per_device_batch",
    "-p": "run.log_every_steps",
    "--static-loss-scale": "precision.loss_scale",
    "--memory-format": "model.memory_format",
    "--workspace": "run.workspace",
    "--resume": "run.resume",
    "--checkpoint": "run.checkpoint_name",
    "--raport-file": "run.raport_file",
    "--pretrained-from-file": "model.pretrained_from_file",
    "--data-backend": "data.backend",
}
