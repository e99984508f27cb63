"""Loader processes end with the training process, and when they cannot send a batch."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]

# Content that cannot be pickled fails in the queue's own thread, as too many open files would.
LOST_BATCH = """
import multiprocessing, time
from image_classification.data.loaders.workers import init_worker

def work(queue):
    init_worker(0)
    queue.put(lambda: "a batch")
    time.sleep(60)

context = multiprocessing.get_context("fork")
process = context.Process(target=work, args=(context.Queue(),))
process.start()
process.join(30)
print(process.exitcode)
process.kill()
"""
MIDWAY = """
import multiprocessing, os, signal
import torch  # __main__ has torch: a torch object pickled by its name would be looked up here
from image_classification.data.loaders.protocol import open_loader
from tests.support.loaders import loader_spec

if __name__ == "__main__":
    epoch = open_loader(loader_spec({folder!r}, workers=2)).epoch(0)
    next(epoch)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    {ending}
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_process_that_cannot_send_a_batch_ends_with_one_line() -> None:
    done = run("-c", LOST_BATCH)
    assert done.stdout == "1\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("a loader process cannot send its batch: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "status"),
    [("pass", 0), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
    ids=["exit", "SIGKILL"],
)
def test_no_process_outlives_the_training_process(
    image_folder: Path, tmp_path: Path, ending: str, status: int
) -> None:
    script = tmp_path / "midway.py"
    script.write_text(textwrap.dedent(MIDWAY.format(folder=str(image_folder), ending=ending)))
    done = run(str(script))
    assert done.returncode == status
    if status == 0:
        assert done.stderr == ""  # after SIGKILL, Python's resource tracker reports what it cleans
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []
