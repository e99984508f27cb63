"""``published.yml``: complete, as printed, and each run has a name or a reason why not."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from image_classification.config.catalogue import load_catalogue
from image_classification.config.resolve import resolve
from image_classification.reporting.figures import FIGURES
from image_classification.reporting.published import load as published_file
from image_classification.reporting.published.load import load_published, load_runs

ROOT = Path(__file__).parents[4]

RUNS_BY_SOURCE = {
    "NVIDIA DeepLearningExamples": 238,
    "NVIDIA DeepLearningExamples TensorFlow1": 99,
    "NVIDIA DeepLearningExamples TensorFlow2": 36,
    "MLPerf Training v2.0": 34,
    "MLPerf Training v3.0": 25,
    "NVIDIA DeepLearningExamples MXNet": 21,
    "DAWNBench entries": 20,
    "PyTorch ConvNets README, container 19.10": 18,
    "MLPerf Training v3.1": 17,
    "Habana Model-References": 16,
    "timm benchmark csv": 16,
    "NVIDIA DeepLearningExamples PaddlePaddle": 16,
    "MLPerf Training v4.0": 13,
    "TensorFlow ResNet-family README, October 2020": 12,
    "libffcv/ffcv-imagenet": 12,
    "MLPerf Training reference": 12,
    "pytorch/vision reference recipes": 11,
    "Iluvatar DeepSparkHub": 10,
    "timm results csv": 10,
    "Habana developer site": 9,
    "ResNet50 on BI-V100 README": 7,
    "open-mmlab mmpretrain model zoo": 5,
    "MosaicML Composer": 5,
    "ResNet strikes back (timm)": 3,
    "NGC catalogue page: ResNet v1.5 TensorFlow checkpoint (AMP)": 1,
    "Intel Gaudi performance page": 1,
    "timm documentation": 1,
}

FIGURES_BY_KIND = {
    "inference_images_per_s": 1178,
    "latency_ms_mean": 1178,
    "latency_ms_p50": 159,
    "latency_ms_p90": 817,
    "latency_ms_p95": 1178,
    "latency_ms_p99": 1178,
    "train_images_per_s": 745,
    "train_images_per_s_xla": 3,
    "train_speedup": 201,
    "top1": 405,
    "top1_low": 99,
    "top1_high": 99,
    "top5": 161,
    "time_to_train_min": 374,
    "time_to_train_speedup": 8,
    "scalability": 196,
    "scaling_efficiency": 1,
    "power_w_per_device": 1,
    "memory_g_per_device": 1,
    "inference_images_per_s_speedup": 31,
    "latency_ms_mean_speedup": 31,
    "latency_ms_p50_speedup": 31,
    "latency_ms_p90_speedup": 31,
    "latency_ms_p95_speedup": 31,
    "latency_ms_p99_speedup": 31,
    "client_send_ms": 128,
    "network_server_ms": 128,
    "queue_ms": 128,
    "compute_input_ms": 128,
    "compute_infer_ms": 128,
    "compute_output_ms": 128,
    "client_recv_ms": 128,
    "calibration_images_per_s": 2,
    "fp32_model_images_per_s": 2,
    "qat_speed_ratio": 2,
    "top1_gap_to_fp32": 2,
}

# id, figure, devices, batch -> value, as the source prints it.
PRINTED = [
    ("nvidia-resnet50-dgx1v-amp-90e", "top1", 8, None, 76.88),
    ("nvidia-resnet50-dgx1v-amp-90e", "train_images_per_s", 8, None, 8322),
    ("nvidia-resnet50-dgx1v-amp-90e", "train_images_per_s", 1, None, 1200),
    ("nvidia-resnet50-dgx1v-amp-90e", "train_speedup", 8, None, 2.91),
    ("nvidia-resnet50-dgx1v-amp-90e", "train_speedup", 1, None, 3.26),
    ("nvidia-resnet50-dgx1v-amp-90e", "scalability", 8, None, 6.93),
    ("nvidia-resnet50-dgx1v-amp-90e", "time_to_train_min", 8, None, 300),
    ("nvidia-resnet50-dgx1v-amp-90e", "time_to_train_min", 1, None, 29 * 60),
    ("nvidia-resnet50-dgxa100-amp-250e", "train_images_per_s", 8, None, 16621),
    ("nvidia-pyt1910-resnet50-dgx2v-amp-90e", "train_images_per_s", 16, None, 13443.82),
    ("nvidia-resnext101-32x4d-dgxa100-tf32-250e", "top1", 8, None, 80.27),
    ("nvidia-se-resnext101-32x4d-dgx1v-fp32-250e", "top1", 8, None, 80.97),
    ("nvidia-summary-resnet50-dgx1v-amp", "top5", 8, None, 94.19),
    ("nvidia-resnet50-v100-16g-amp-inference", "inference_images_per_s", 1, 128, 3249),
    ("nvidia-resnet50-v100-16g-amp-inference", "latency_ms_mean", 1, 128, 43.55),
    ("nvidia-resnet50-v100-16g-amp-inference", "latency_ms_p99", 1, 1, 14.36),
    ("nvidia-resnet50-t4-fp32-inference", "latency_ms_p95", 1, 256, 620.16),
    ("iluvatar-resnet50-bi-v100-x8-fp32-90e", "train_images_per_s", 8, None, 2150),
    ("biv100-readme-resnet50-bi-v100-x8-amp-criteria", "power_w_per_device", 8, None, 128),
    ("biv100-readme-resnet50-bi-v100-x8-amp-criteria", "memory_g_per_device", 8, None, 29.1),
    ("biv100-readme-resnet50-bi-v100-x8-amp-criteria", "scaling_efficiency", 8, None, 0.97),
    ("nvidia-tf-resnet50-dgxa100-40g-amp-90e", "train_images_per_s", 8, None, 17400),
    ("nvidia-mxnet-resnet50-dgx1v-x8-amp-90e", "train_images_per_s", 2, None, 2768),
    ("nvidia-mxnet-resnet50-dgxa100-x8-amp-90e", "train_images_per_s", 8, None, 26673.72),
    ("nvidia-mxnet-resnet50-infer-dgxa100-amp", "latency_ms_p50_speedup", 1, 2, 2.31),
    ("nvidia-paddle-resnet50-dgxa100-amp-90e", "top1", 8, None, 76.93),
    ("nvidia-efficientnet-b4-dgxa100-amp-400e", "scalability", 16, None, 14.51),
    ("habana-tf-resnet50-gaudi16-sgd", "train_images_per_s", 16, None, 23400),
    ("habana-tf-resnet50-gaudi16-sgd", "time_to_train_min", 16, None, 88),
    ("torchvision-resnet50-v2-8gpu-600e", "top1", 8, None, 80.858),
    ("ffcv-rn50-8a100-amp-88e", "time_to_train_min", 8, None, 77.2),
    ("mlperf-v4.0-nvidia-h200-ngc24-04-mxnet", "top1_high", 8, None, 76.12),
    ("dawnbench-fastai-resnet50-p3-16-machine-pytorch", "top5", 128, None, 93.11),
]

NAMED = [run for run in load_runs() if run.named is not None]


def test_number_of_runs_and_figures():
    runs, rows = load_runs(), load_published()
    assert len(runs) == 668
    assert Counter(run.source.name for run in runs) == RUNS_BY_SOURCE
    assert Counter(row.figure for row in rows) == FIGURES_BY_KIND


def test_every_row_is_well_formed():
    for row in load_published():
        assert row.figure in FIGURES
        assert row.value > 0 or row.figure.endswith("_ms"), row
        if FIGURES[row.figure].unit == "percent":
            assert 60 < row.value < 100 and (row.spread or 0) < 0.5, row.id
        if row.figure == "train_speedup":
            assert row.over in ("FP32", "TF32", None), row.id
        if row.figure == "train_images_per_s" and row.run.kind != "recipe-only":
            assert row.value < 4_000_000, row.id


@pytest.mark.parametrize(("name", "figure", "devices", "batch", "value"), PRINTED)
def test_figures_equal_the_printed_values(name, figure, devices, batch, value):
    found = [
        row.value
        for row in load_published()
        if (row.id, row.figure, row.num_devices, row.batch) == (name, figure, devices, batch)
    ]
    assert found == [value]


def test_spreads_and_printed_words():
    rows = {(row.id, row.figure, row.num_devices): row for row in load_published()}
    assert rows["nvidia-resnet50-dgx1v-amp-90e", "top1", 8].spread == 0.16
    assert rows["nvidia-resnet50-dgx1v-amp-90e", "train_speedup", 8].over == "FP32"
    assert rows["nvidia-resnet50-dgx1v-amp-90e", "time_to_train_min", 1].printed == "~29 hours"


def test_contradicting_documents_are_both_loaded():
    of_one = [row for row in load_published() if row.run.id == "nvidia-resnet50-dgx1v-amp-250e"]
    values = {row.elsewhere: row.value for row in of_one if row.figure == "top1"}
    assert values[None] == 78.25
    assert values["PyTorch 20.06 README @46ff3707"] == 78.42
    side_by_side = "ConvNets/README.md side-by-side table (20.12, epochs not stated)"
    assert values[side_by_side] == 78.6
    (beside,) = [row for row in of_one if (row.elsewhere, row.figure) == (side_by_side, "top1")]
    assert beside.epochs is None
    assert beside.recipe.lr is None


def test_every_source_has_a_path_and_most_have_a_version():
    for run in load_runs():
        assert run.source.name and run.source.path, run.id
    assert sum(run.source.version is not None for run in load_runs()) == 597


def test_named_runs_have_known_hardware():
    for run in NAMED:
        if run.source.name != "TensorFlow ResNet-family README, October 2020":
            assert run.hardware.device and run.hardware.device_name, run.id


def test_sources_of_configurations_are_runs_named_after_them():
    runs = {run.id: run for run in load_runs()}
    checked = 0
    for (model, _, precision), entry in load_catalogue().entries.items():
        for recipe in entry.recipes.values():
            for name in (*entry.block.sources, *recipe.sources):
                named = runs[name].named
                assert named is not None, name
                assert (named.model, named.precision) == (model, precision), name
                checked += 1
    assert checked > 60


@pytest.mark.parametrize("run", NAMED, ids=lambda run: run.id)
def test_a_named_run_has_the_published_hyperparameters(run):
    named = run.named
    config = resolve(named.model, named.precision, "convergence", named.platform, named.recipe)
    ours = {
        "epochs": config.schedule.epochs,
        "per_device_batch": config.batch.per_device_batch,
        "global_batch": config.batch.global_batch,
        "lr": config.optim.lr,
        "warmup_epochs": config.schedule.warmup_epochs,
        "weight_decay": config.optim.weight_decay,
        "label_smoothing": config.loss.label_smoothing,
        "mixup": config.mixing.mixup,
    }
    published = {key: getattr(run.recipe, key) for key in ours}
    other = {key for key, value in published.items() if value is not None and value != ours[key]}
    if run.hardware.device == "cuda" and run.hardware.device_name != config.platform.device_name:
        other.add("hardware")
    if run.kind != "inference" and run.num_devices not in (None, config.world_size):
        other.add("num_devices")
    assert set(run.differs) == other
    assert run.recipe.optimizer in (None, "sgd"), run.id


def test_reasons_of_runs_without_a_name():
    reasons = {run.id: run.why_not for run in load_runs() if run.named is None}
    assert len(reasons) == 485
    assert reasons["habana-resnet50-hpu8-bf16-lars-compile-35e"] == (
        "the optimizer LARS is not among those here"
    )
    models = set(load_catalogue().models)
    for run in load_runs():
        if run.why_not == "EfficientNet is not among the models yet":
            assert run.model not in models


@pytest.mark.parametrize("arguments", ["--list", "--explain"])
def test_listing_and_explaining_do_not_read_the_file(arguments):
    names = "--model resnet50 --precision AMP --mode convergence --platform DGX1V"
    program = (
        "import sys\n"
        "from image_classification.cli.launch import main\n"
        f"code = main({[*names.split(), arguments] if arguments == '--explain' else [arguments]})\n"
        "assert code in (0, None), code\n"
        "assert 'image_classification.reporting.published.load' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_figure_is_refused(monkeypatch):
    run = load_runs()[0]
    entry = {"id": run.id, "figures": {"top2": 90.0}}
    monkeypatch.setattr(published_file, "_entries", lambda: {run.id: entry})
    with pytest.raises(ValueError, match="unknown figure 'top2'"):
        published_file.rows_of.__wrapped__(run)


def test_a_repeated_figure_is_refused(monkeypatch):
    run = load_runs()[0]
    other = {"source": "another page", "figures": {"top1": 76.0}}
    monkeypatch.setattr(published_file, "_entries", lambda: {run.id: {"others": [other, other]}})
    with pytest.raises(ValueError, match="appears twice"):
        published_file.rows_of.__wrapped__(run)
