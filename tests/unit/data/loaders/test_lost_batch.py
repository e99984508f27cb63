"""A loader process whose queue cannot send a batch ends, so that nobody waits for the batch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]

# What cannot be pickled fails where an open file too many would: in the queue's own thread.
SCRIPT = """
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


def test_it_ends_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "1\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("a loader process cannot send its batch: ")
