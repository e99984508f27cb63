"""scripts/container_check.sh with a real engine, and the detection of a slower image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.image.containers import ROOT, Engine


def test_check_and_comparison_with_a_slower_image(engine: Engine, tmp_path: Path) -> None:
    results = tmp_path / "checks" / "first"
    script = ROOT / "scripts" / "container_check.sh"
    arguments = ["--quick", "--platform", "CPU", "--precision", "FP32", "--results", str(results)]
    client = str(Path(shutil.which(engine.client) or engine.client).parent)
    check = subprocess.Popen(
        [str(script), *arguments, engine.image],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": f"{client}:{os.environ['PATH']}"},
    )
    try:
        out, err = check.communicate()
    finally:
        # On a timeout: the script stops its container only if it is terminated, not if killed.
        check.terminate()
        check.wait()
    assert check.returncode == 0, out + err
    for label in ("training speed", "Inference, means", "top-1"):
        assert label in out
    summary = json.loads((results / "summary.json").read_text())
    assert summary["outcome"] == "recorded"
    assert summary["images"][0]["id"] == engine.inspect()["Id"]
    assert [run["exit"] for run in summary["runs"]] == [0, 0, 0]

    # The same runs at a hundredth of the speed, as if another image had produced them.
    first = results / summary["images"][0]["folder"]
    slower = tmp_path / "slower"
    shutil.copytree(first, slower)
    for file in slower.glob("*/report.json"):
        report = json.loads(file.read_text())
        if report["results"]["train"]["images_per_s"] is not None:
            report["results"]["train"]["images_per_s"] /= 100
        file.write_text(json.dumps(report))
    compared = engine.run(
        "report",
        *("compare", "/first", "/slower"),
        options=["--volume", f"{first}:/first:ro", "--volume", f"{slower}:/slower:ro"],
    )
    assert compared.returncode == 4, compared.stderr
    assert compared.stdout.count("training speed: -99.0 %, worse by more than 5 %") == 2
