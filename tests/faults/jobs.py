"""Real runs started as a user starts them, watched and cleaned up after; what they learnt."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from image_classification.core.types import Record
from image_classification.reporting.sinks import read_metrics

ROOT = Path(__file__).parents[2]
MARK = "FAULT_TEST_JOB"
"""Environment variable that tells whose process one is."""

GLOBAL_BATCH = 8
PATIENCE_S = 120.0


def _environ(pid: int) -> dict[str, str]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in content.split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


class Zygote:
    """Talks to zygote.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            env=_clean_environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._started: queue.Queue[int] = queue.Queue()
        self.codes: dict[int, int] = {}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "code" in answer:
                self.codes[answer["pid"]] = answer["code"]
            elif "pid" in answer:
                self.codes.pop(answer["pid"], None)  # of an earlier process with this number
                self._started.put(answer["pid"])

    def fork(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        out: Path,
        err: Path,
        script: Path | None = None,
    ) -> int:
        assert self._process.stdin is not None
        job = {"argv": [*argv], "environ": {**environ}, "out": str(out), "err": str(err)}
        job["script"] = str(script) if script else ""
        self._process.stdin.write((json.dumps(job) + "\n").encode())
        self._process.stdin.flush()
        return self._started.get(timeout=PATIENCE_S)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=PATIENCE_S)
        self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _clean_environ() -> dict[str, str]:
    # One thread a process: the same arithmetic however many cores there are.
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@dataclass
class Job:
    """One start of ``launch.py``: one process, a launcher with its ranks, or ranks alone.

    pids: the processes started here. codes: how they ended, by pid.
    """

    folder: Path
    mark: str
    out: Path
    err: Path
    world_size: int
    pids: list[int]
    _popen: subprocess.Popen[bytes] | None = None
    _codes: Mapping[int, int] = field(default_factory=dict)

    @property
    def codes(self) -> dict[int, int]:
        """How the processes started here have ended, so far."""
        if self._popen is not None:
            code = self._popen.poll()
            return {} if code is None else {self._popen.pid: code}
        return {pid: self._codes[pid] for pid in self.pids if pid in self._codes}

    @property
    def has_ended(self) -> bool:
        return len(self.codes) == len(self.pids)

    @property
    def stderr(self) -> str:
        return self.err.read_text(errors="replace") if self.err.exists() else ""

    def records(self) -> list[Record]:
        """What the folder's run has recorded, earlier starts included."""
        path = self.folder / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    def until(self, condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> bool:
        """Wait for ``condition``; False when the job ended first."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.has_ended:
                return bool(condition())
            time.sleep(0.005)
        raise AssertionError(f"waited {timeout_s:g} s in vain:\n{self.stderr}")

    def until_recorded(self, kind: str, step: int = 0) -> None:
        """Wait for a record of this kind, at this step or later; the job must still run."""
        assert self.until(lambda: any(r.kind == kind and r.step >= step for r in self.records())), (
            self.stderr
        )
        assert not self.has_ended, self.stderr

    def rank_pid(self, rank: int) -> int:
        """The process of ``rank``: the job itself, or a child of its launcher."""
        if self.world_size == 1 or len(self.pids) > 1:
            return self.pids[rank]
        found = [p for p in self.processes() if _environ(p).get("RANK") == str(rank)]
        # Loader processes inherit RANK; the rank itself is the launcher's child.
        (pid,) = [p for p in found if _parent(p) == self.pids[0]]
        return pid

    def processes(self) -> list[int]:
        """Every process of the job that runs."""
        marked = [
            int(p)
            for p in os.listdir("/proc")
            if p.isdigit() and _environ(p).get(MARK) == self.mark
        ]
        return sorted({p for p in [*marked, *self.pids] if _is_running(p)})

    def finish(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end; return the exit code, the same for every process started here."""
        deadline = time.monotonic() + timeout_s
        while not self.has_ended:
            assert time.monotonic() < deadline, f"still there after {timeout_s:g} s:\n{self.stderr}"
            time.sleep(0.005)
        codes = set(self.codes.values())
        assert len(codes) == 1, (codes, self.stderr)
        return codes.pop()

    def finish_after_a_kill(self) -> None:
        """Wait for what a killed process leaves behind; its peers end by themselves."""
        assert self.until(lambda: self.has_ended, timeout_s=60.0)

    def assert_nothing_left(self) -> None:
        """No process of the job may outlive it by more than a moment."""
        deadline = time.monotonic() + 20.0
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)
        left = [Path(f"/proc/{p}/cmdline").read_bytes() for p in self.processes()]
        assert left == []

    def error_lines(self) -> list[str]:
        """What the user was told; a traceback is never part of it."""
        assert "Traceback" not in self.stderr, self.stderr
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(") ")[2].split()[1])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Jobs:
    """Starts jobs. real: as fresh processes, where a start does not say otherwise."""

    def __init__(self, zygote: Zygote, place: Path, real: bool) -> None:
        self._zygote = zygote
        self._real = real
        self._place = place
        self._started: list[Job] = []

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        *more: str,
        processes: int = 1,
        environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        real: bool | None = None,
    ) -> Job:
        """Start ``launch.py ARGUMENTS --workspace=FOLDER MORE``.

        environ is added to the environment. prefix: a command that runs the rest; with one, or
        with an environment, the start is always a real one.
        """
        mark = uuid.uuid4().hex
        out, err = self._place / f"{mark}.out", self._place / f"{mark}.err"
        argv = [*arguments, f"--workspace={folder}", *more]
        if processes > 1:
            argv.append(f"--set=platform.num_devices={processes}")
            argv.append(f"--set=batch.per_device={GLOBAL_BATCH // processes}")
        common = {MARK: mark, **(environ or {})}
        if environ or prefix or (self._real if real is None else real):
            with open(out, "wb") as to, open(err, "wb") as errors:
                popen = subprocess.Popen(
                    [*prefix, sys.executable, str(ROOT / "launch.py"), *argv],
                    env={**_clean_environ(), **common},
                    stdout=to,
                    stderr=errors,
                    start_new_session=True,
                )
            job = Job(folder, mark, out, err, processes, [popen.pid], _popen=popen)
        else:
            pids = [
                self._zygote.fork(argv, {**common, **place}, out, err)
                for place in _places(processes)
            ]
            job = Job(folder, mark, out, err, processes, pids, _codes=self._zygote.codes)
        self._started.append(job)
        return job

    def start_ranks(self, script: Path, argv: Sequence[str], processes: int) -> Job:
        """Fork ``SCRIPT ARGV`` once for each rank of a world."""
        mark = uuid.uuid4().hex
        out, err = self._place / f"{mark}.out", self._place / f"{mark}.err"
        pids = [
            self._zygote.fork(argv, {MARK: mark, **place}, out, err, script)
            for place in _places(processes)
        ]
        job = Job(self._place, mark, out, err, processes, pids, _codes=self._zygote.codes)
        self._started.append(job)
        return job

    def run(self, arguments: Sequence[str], folder: Path, *more: str, processes: int = 1) -> Job:
        """Run to the end, which must be a good one."""
        job = self.start(arguments, folder, *more, processes=processes)
        assert job.finish() == 0, job.stderr
        return job

    def close(self) -> None:
        """End whatever a failed test left behind."""
        for job in self._started:
            for pid in job.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if job._popen is not None:
                job._popen.wait(timeout=PATIENCE_S)


def _places(processes: int) -> list[dict[str, str]]:
    if processes == 1:
        return [{}]
    port = free_port()
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(processes)
    ]


@dataclass(frozen=True)
class Learnt:
    """All a run has learnt: the tensors of its newest checkpoint."""

    step: int
    model: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]

    @classmethod
    def of(cls, folder: Path) -> Learnt:
        newest = max((folder / "checkpoints").glob("step-*"))
        return cls(
            int(newest.name.removeprefix("step-")),
            load_file(newest / "model.safetensors"),
            load_file(newest / "state.safetensors"),
        )

    def assert_equal(self, other: Learnt) -> None:
        """Bit for bit."""
        assert self.step == other.step
        for mine, others in ((self.model, other.model), (self.state, other.state)):
            assert mine.keys() == others.keys()
            assert [k for k in mine if not torch.equal(mine[k], others[k])] == []
