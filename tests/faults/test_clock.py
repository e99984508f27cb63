"""Wall clock changes of an hour during a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.jobs import FinalState

HOUR_S = 3600
SAVING = ("--save-every=2 steps",)

# Preloaded into a process and its children: every third reading of the wall clock moves it, in
# turn an hour back, to the true time, and an hour ahead. Like `date -s` it leaves the monotonic
# clock alone.
STEPPED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <time.h>

static long step_s(void) {
    static atomic_long readings;
    return (long[]){0, -3600, 0, 3600}[atomic_fetch_add(&readings, 1) / 3 % 4];
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += step_s();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *kept) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (kept) *kept = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.fixture
def stepped_clock(tmp_path: Path) -> dict[str, str]:
    """Return the environment that preloads the changing clock."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc or gcc) to build the changing clock")
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(STEPPED)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return {"LD_PRELOAD": str(library)}


def durations(content: object, path: str = "") -> dict[str, float]:
    """Return every number whose key names a duration or a rate."""
    found: dict[str, float] = {}
    if isinstance(content, dict):
        for key, value in content.items():
            here = f"{path}.{key}"
            timed = any(word in here for word in ("time_s", "_wait", "per_s", "_s.", "stall_s"))
            if isinstance(value, int | float) and not isinstance(value, bool) and timed:
                found[here] = float(value)
            found |= durations(value, here)
    elif isinstance(content, list):
        for n, item in enumerate(content):
            found |= durations(item, f"{path}.{n}")
    return found


def test_clock_stepped_during_a_run(
    jobs, arguments, stepped_clock, reference_state, full, record_outcome, tmp_path: Path
) -> None:
    """The wall clock is set an hour back and ahead repeatedly; the run is resumed."""
    folder = tmp_path / "run"
    began = time.monotonic()
    # Only a fresh process loads the library.
    first = jobs.start(
        arguments, folder, *SAVING, "--set=run.max_steps=6", environ=stepped_clock, fresh=True
    )
    assert first.wait() == 0, first.stderr
    # The newest checkpoint gets the oldest file times.
    for age, saved in enumerate(sorted((folder / "checkpoints").glob("step-*"))):
        for path in (*saved.iterdir(), saved):
            os.utime(path, (1e9 - age * HOUR_S, 1e9 - age * HOUR_S))
    environ = stepped_clock if full else None
    second = jobs.start(arguments, folder, *SAVING, "--resume=auto", environ=environ)
    assert second.wait() == 0, second.stderr
    took_s = time.monotonic() - began

    records = second.records()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    stamps = [line["timestamp"] for line in lines]
    assert stamps != sorted(stamps), "the clock did not change: the test has no effect"
    starts = [i for i, r in enumerate(records) if r.kind == "start"]
    assert records[starts[-1]].values["start_step"] == 6
    times = [line["time_s"] for line in lines]
    # time_s counts from the start of each process.
    decreases = [i for i in range(1, len(times)) if times[i] < times[i - 1]]
    assert len(decreases) == 1, times
    report = json.loads((folder / "report.json").read_text())
    measured = durations([{"values": r.values} for r in records]) | durations(report["results"])
    assert len(measured) > 40
    wrong = {key: value for key, value in measured.items() if value < 0}
    assert wrong == {}
    others = ("per_s", "unix_time_s")
    in_seconds = {k: v for k, v in measured.items() if not any(other in k for other in others)}
    assert {k: v for k, v in in_seconds.items() if v > took_s} == {}
    FinalState.read(folder).assert_equal(reference_state(arguments))
    record_outcome(
        "survived: durations monotonic and non-negative, newest checkpoint by step, same weights"
    )
