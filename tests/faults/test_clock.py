"""The clock stepped by an hour, back and forth."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

HOUR_S = 3600
SAVING = ("--save-every=2 steps",)

# The wall clock of a process and its children: at every third reading it is set, an hour back, an
# hour ahead and right again in turn. The monotonic clock is left alone, as it is by `date -s`.
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
    """Environment in which the clock is not to be relied on."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build a stepping clock with")
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(STEPPED)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return {"LD_PRELOAD": str(library)}


def durations(content: object, path: str = "") -> dict[str, float]:
    """Every number under a key that is a duration or a rate."""
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
    jobs, arguments, stepped_clock, undisturbed, learnt, full, seen, tmp_path: Path
) -> None:
    """The wall clock is set an hour back and ahead over and over, and the run resumed."""
    folder = tmp_path / "run"
    began = time.monotonic()
    first = jobs.start(arguments, folder, *SAVING, "--set=run.max_steps=6", environ=stepped_clock)
    assert first.finish() == 0, first.stderr
    # What was saved last now looks oldest.
    for age, saved in enumerate(sorted((folder / "checkpoints").glob("step-*"))):
        for path in (*saved.iterdir(), saved):
            os.utime(path, (1e9 - age * HOUR_S, 1e9 - age * HOUR_S))
    # With an environment of its own a start takes its time.
    environ = stepped_clock if full else None
    second = jobs.start(arguments, folder, *SAVING, "--resume=auto", environ=environ)
    assert second.finish() == 0, second.stderr
    took_s = time.monotonic() - began

    records = second.records()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    stamps = [line["timestamp"] for line in lines]
    assert stamps != sorted(stamps), "the clock was not stepped: this test tests nothing"
    starts = [i for i, r in enumerate(records) if r.kind == "start"]
    assert records[starts[-1]].values["start_step"] == 6
    times = [line["time_s"] for line in lines]
    # From the start of each process; a warning may come before its first record.
    falls = [i for i in range(1, len(times)) if times[i] < times[i - 1]]
    assert len(falls) == 1, times
    report = json.loads((folder / "report.json").read_text())
    measured = durations([{"values": r.values} for r in records]) | durations(report["results"])
    assert len(measured) > 40
    wrong = {key: value for key, value in measured.items() if value < 0}
    assert wrong == {}
    others = ("per_s", "unix_time_s")
    in_seconds = {k: v for k, v in measured.items() if not any(other in k for other in others)}
    assert {k: v for k, v in in_seconds.items() if v > took_s} == {}
    learnt.of(folder).assert_equal(undisturbed(arguments))
    seen("survived: durations monotonic and non-negative, newest checkpoint by step, same weights")
