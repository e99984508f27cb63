#!/usr/bin/env python3
"""Resident memory of a data loader over many epochs: flat, or it leaks.

The generated set of data_loading.py, 8,000 files. Memory is what the process and its children hold
after each epoch, pages they share counted once. Pages of files (libraries) are not in it: their
share depends on what other processes run. The first epochs, in which buffers are made as they are
needed, are left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data_loading import BATCH, IMAGES, LISTED, open_ours, write_images
from record import RESULTS, write_record

BACKENDS = ("pytorch", "dali-cpu")
SETTLING_EPOCHS = 4
WAITING_STEPS = 4
WAIT_S = 2.0


def resident_mib() -> float:
    """Return the proportional set size of this process and its descendants, without files."""
    pids, found = [os.getpid()], 0.0
    while pids:
        pid = pids.pop()
        try:
            children = Path(f"/proc/{pid}/task").glob("*/children")
            pids += [int(child) for path in children for child in path.read_text().split()]
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has ended meanwhile
            continue
        kinds = ("Pss_Anon:", "Pss_Shmem:")
        found += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(kinds))
    return found / 1024


def measure(backend: str, folder: Path, workers: int, epochs: int) -> list[float]:
    """Return the memory after each epoch, in MiB."""
    loader = open_ours(backend, "nhwc", folder, workers)
    after = []
    for epoch in range(epochs):
        for step, _ in enumerate(loader.epoch(epoch)):
            if epoch == 0 and step < WAITING_STEPS:
                time.sleep(WAIT_S)  # as a training step does: all batches that may wait get made
        gc.collect()
        after.append(resident_mib())
    loader.close()
    return after


def main() -> None:
    """Measure each backend in a process of its own, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=BACKENDS, help="measure this one and print it")
    parser.add_argument("--images", type=Path, help="folder of the generated set")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    if arguments.only:
        found = measure(arguments.only, arguments.images, arguments.workers, arguments.epochs)
        print(json.dumps(found))
        return
    figures: dict[str, Any] = {
        "images": IMAGES * LISTED,
        "epochs": arguments.epochs,
        "batch": BATCH,
    }
    with tempfile.TemporaryDirectory() as scratch:
        write_images(Path(scratch))
        for backend in BACKENDS:
            command = [sys.executable, __file__, "--only", backend, "--images", scratch]
            command += ["--workers", str(arguments.workers), "--epochs", str(arguments.epochs)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            after = json.loads(done.stdout.splitlines()[-1])
            settled = after[SETTLING_EPOCHS:]
            change = 100 * (settled[-1] / settled[0] - 1)
            span = 100 * (max(settled) / min(settled) - 1)
            figures[backend] = {
                "resident_mib": [round(value) for value in after],
                "change_percent": round(change, 2),
                "span_percent": round(span, 2),
            }
            print(
                f"{backend}: {settled[0]:.0f} MiB after epoch {SETTLING_EPOCHS + 1}, "
                f"{settled[-1]:.0f} after {arguments.epochs} ({change:+.2f} %, span {span:.2f} %)"
            )
    packages = ["torch", "torchvision", "nvidia-dali-cuda120"]
    print(write_record("loader_memory", figures, packages, arguments.out))


if __name__ == "__main__":
    main()
