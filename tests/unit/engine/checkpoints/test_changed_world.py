"""A run resumed mid-epoch with another number of processes: same batches, same curve."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from image_classification.reporting.sinks import read_metrics

SCRIPT = Path(__file__).parents[1] / "faulty_launch.py"


@pytest.mark.faults(
    "A run on 2 ranks is stopped mid-epoch and resumed on 1, then on 3",
    "survived: each image once per epoch, same learning rates, a warning",
)
@pytest.mark.slow
def test_two_then_one_then_three_ranks_see_each_image_once(
    small_arguments, small_config, open_run, tmp_path
):
    folder, samples = tmp_path / "run", tmp_path / "samples.jsonl"
    arguments = [a for a in small_arguments if "batch." not in a]
    # 36 images, 12 a step: three steps an epoch; the worlds change after steps 1 and 2.
    arguments += ["--set=batch.global=12", "--set=schedule.epochs=2", f"--workspace={folder}"]
    for world, stop_at in ((2, 1), (1, 2), (3, 6)):
        found = subprocess.run(
            [
                *(sys.executable, str(SCRIPT), *arguments, "--resume=auto"),
                *(f"--set=platform.num_devices={world}", f"--batch-size={12 // world}"),
                f"--set=run.max_steps={stop_at}",
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "SAMPLES": str(samples)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert found.returncode == 0, found.stderr

    seen = {0: [], 1: []}
    for line in samples.read_text().splitlines():
        request = json.loads(line)
        seen[request["epoch"]] += request["indices"]
    for epoch, indices in seen.items():
        assert sorted(indices) == list(range(36)), epoch

    records = read_metrics(folder / "metrics.jsonl")
    steps = [r for r in records if r.kind == "step"]
    assert [r.step for r in steps] == [1, 2, 3, 4, 5, 6]
    config = small_config(batch__global=12, batch__per_device=12, schedule__epochs=2)
    schedule = open_run(config, workspace=str(tmp_path / "other")).schedule
    assert [r.values["lr"] for r in steps] == [schedule.lr(s) for s in range(6)]
    assert {r.values["global_batch"] for r in records if r.kind == "start"} == {12}

    report = json.loads((folder / "report.json").read_text())
    starts = report["results"]["starts"]
    assert [(s["step"], s["world_size"]) for s in starts] == [(0, 2), (1, 1), (2, 3)]
    assert [s["changes"] for s in starts] == [[], [], []]
    assert starts[0]["resumed_from"] is None
    assert starts[1]["resumed_from"].endswith("step-0000000001")
    assert [r.values["message"][:22] for r in records if r.kind == "warning"][-1] == (
        "resumed on 3 processes"
    )
