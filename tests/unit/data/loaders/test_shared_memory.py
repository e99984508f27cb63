"""A container's small /dev/shm ends in one line, not in a wait for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from image_classification.data.loaders import workers

ROOT = Path(__file__).parents[4]
MOUNT = 'mount -t tmpfs -o size="$0" tmpfs /dev/shm && exec "$@"'


def may_mount() -> bool:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    tried = subprocess.run(
        ["unshare", "--mount", "sh", "-c", MOUNT, "1m", "true"], capture_output=True, check=False
    )
    return tried.returncode == 0


@pytest.mark.faults(
    "/dev/shm too small for one queue, or for one batch",
    "refused: `shared memory ran out …`",
)
@pytest.mark.slow
@pytest.mark.parametrize("room", ["64k", "2m"], ids=["no queue fits", "no batch fits"])
def test_a_full_dev_shm_is_one_line(image_folder: Path, tmp_path: Path, room: str) -> None:
    if not may_mount():
        pytest.skip("mounting a small /dev/shm needs root and unshare")
    command = [sys.executable, str(ROOT / "launch.py"), str(image_folder), "--model=resnet18"]
    command += ["--precision=FP32", "--mode=benchmark_data", "--platform=CPU", "--num_classes=2"]
    command += ["--data-backend=pytorch", "--workers=2", "--image-size=512", "--batch-size=8"]
    command += ["--optimizer-batch-size=8", f"--workspace={tmp_path / 'run'}"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", MOUNT, room, *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"error: {workers.NO_SHARED_MEMORY}" in done.stderr.splitlines()
    assert room == "64k" or "Traceback" not in done.stderr  # workers may tell of their half-start


def test_another_failure_is_not_taken_for_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: torch.Tensor) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(RuntimeError, match="something else"):
        workers.move_to_shared_memory([torch.zeros(1)])
