import pytest

from image_classification.config.catalogue import load_catalogue
from image_classification.config.resolve import resolve
from image_classification.core.types import DevicesFound
from image_classification.reporting.published.load import rows_for
from tests.support.runs import compared

# The published throughput is of another per-device batch than the listed configuration, which
# takes the batch that was published with the accuracy.
OTHER_BATCH = {("resnet50", "DGX2V", "FP32", "train_images_per_s")}

PLATFORMS = {
    "DGX1V": 8,
    "DGX1V-16G": 8,
    "DGX1V-32G": 8,
    "DGX2V": 16,
    "DGXA100": 8,
    "BI-V100x1": 1,
    "BI-V100x4": 4,
    "BI-V100x8": 8,
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_listed_run_that_gives_the_published_figures_reproduces_them(platform):
    judged = 0
    for run in load_catalogue().runs():
        if run.platform != platform:
            continue
        config = resolve(run.model, run.precision, "convergence", run.platform, run.recipe)
        for row in rows_for(config):
            if row.figure not in ("top1", "train_images_per_s"):
                continue
            assert row.num_devices == PLATFORMS[platform], (run, row.id)
            devices = DevicesFound("cuda", (f"NVIDIA {row.hardware.device_name}",) * 8)
            results = {
                "train": {"images_per_s": row.value, "epochs": config.schedule.epochs},
                "validation": {"top1": row.value, "images": 50_000},
            }
            (entry,) = [
                entry
                for entry in compared(config, results, devices)
                if (entry.id, entry.figure) == (row.id, row.figure)
            ]
            if (run.model, platform, run.precision, row.figure) in OTHER_BATCH:
                assert entry.why.startswith("per-device batch 256, published 128")
            else:
                assert entry.verdict == "reproduced", (run, row.id, entry.why)
                judged += 1
    assert judged >= 2
