"""Start ``launch.py``, observe its processes, and read what it wrote."""

from __future__ import annotations

import atexit
import contextlib
import functools
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

import psutil
import torch
from safetensors.torch import load_file

from image_classification.core.types import Record
from image_classification.reporting.sinks import read_metrics

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch.py"
FORK_SERVER = ROOT / "tests" / "support" / "fork_server.py"
GLOBAL_BATCH = 8
TIMEOUT_S = 120.0

_LAUNCHER_VARIABLES = (
    "SLURM_",
    "OMPI_",
    "PMI_",
    "MPI_",
    "MASTER_",
    "TORCHELASTIC_",
    "IMAGE_CLASSIFICATION_",
)


def job_environ(**variables: str) -> dict[str, str]:
    """Return this process's environment without a launcher's variables.

    One OpenMP thread: the same arithmetic on any number of cores.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHER_VARIABLES)}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class ForkServer:
    """Client of fork_server.py, which starts jobs without importing torch each time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(FORK_SERVER)],
            env=job_environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._started: queue.Queue[int] = queue.Queue()
        self.exit_codes: dict[int, int] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "code" in answer:
                self.exit_codes[answer["pid"]] = answer["code"]
            elif "pid" in answer:
                self.exit_codes.pop(answer["pid"], None)  # an earlier process with this pid
                self._started.put(answer["pid"])

    def fork(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        out: Path,
        err: Path,
        script: Path | None = None,
    ) -> int:
        """Run ``launch.py ARGV``, or ``SCRIPT ARGV``, in a fork; return its pid."""
        assert self._process.stdin is not None
        job = {"argv": [*argv], "environ": {**environ}, "out": str(out), "err": str(err)}
        job["script"] = str(script) if script else ""
        self._process.stdin.write((json.dumps(job) + "\n").encode())
        self._process.stdin.flush()
        return self._started.get(timeout=TIMEOUT_S)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=TIMEOUT_S)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@functools.cache
def fork_server() -> ForkServer:
    """Return this process's fork server, which is started by the first call."""
    server = ForkServer()
    atexit.register(server.close)
    return server


@dataclass
class Job:
    """One start of ``launch.py``: one process, a launcher with its ranks, or ranks alone.

    pids: the processes started directly. err: the file that is the stderr of every process.
    """

    folder: Path
    out: Path
    err: Path
    pids: list[int]
    _popen: subprocess.Popen[bytes] | None = None
    _exit_codes: Mapping[int, int] = field(default_factory=dict)

    @property
    def exit_codes(self) -> dict[int, int]:
        """Exit codes by pid of the directly started processes that have ended."""
        if self._popen is not None:
            code = self._popen.poll()
            return {} if code is None else {self._popen.pid: code}
        return {pid: self._exit_codes[pid] for pid in self.pids if pid in self._exit_codes}

    @property
    def has_ended(self) -> bool:
        return len(self.exit_codes) == len(self.pids)

    @property
    def stderr(self) -> str:
        return self.err.read_text(errors="replace") if self.err.exists() else ""

    def records(self, kind: str | None = None) -> list[Record]:
        """Return the records in the run's folder, earlier starts included."""
        path = self.folder / "metrics.jsonl"
        return read_records(self.folder, kind) if path.exists() else []

    def wait_until(self, condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> bool:
        """Wait for ``condition``; return False if the job ended first."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.has_ended:
                return bool(condition())
            time.sleep(0.005)
        raise AssertionError(f"condition not met within {timeout_s:g} s:\n{self.stderr}")

    def wait_for_record(self, kind: str, step: int = 0) -> None:
        """Wait for a record of this kind at ``step`` or later; the job must still run then."""
        assert self.wait_until(lambda: any(r.step >= step for r in self.records(kind))), self.stderr
        assert not self.has_ended, self.stderr

    def rank_pid(self, rank: int) -> int:
        """Return the pid of ``rank``: started directly, or a child of its launcher."""
        if len(self.pids) > 1:
            return self.pids[rank]
        (pid,) = self.pids
        # The ranks of a launcher lead a session each, and are started in their order; loader
        # servers and resource trackers are in their parent's session.
        children = [p.pid for p in psutil.Process(pid).children() if _is_running(p)]
        ranks = sorted(child for child in children if os.getsid(child) == child)
        return ranks[rank] if ranks else pid

    def send_signal(self, number: int) -> None:
        """Send a signal to every process started directly that still runs."""
        for pid in self.pids:
            if pid not in self.exit_codes:
                os.kill(pid, number)

    def processes(self) -> list[int]:
        """Return the pids of all running processes of the job."""
        return [p.pid for p in psutil.process_iter() if self._is_ours(p.pid) and _is_running(p)]

    def _is_ours(self, pid: int) -> bool:
        try:
            return pid in self.pids or os.readlink(f"/proc/{pid}/fd/2") == str(self.err)
        except OSError:
            return False

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for the end; return the exit code, the same for every process started directly."""
        deadline = time.monotonic() + timeout_s
        while not self.has_ended:
            assert time.monotonic() < deadline, (
                f"still running after {timeout_s:g} s:\n{self.stderr}"
            )
            time.sleep(0.005)
        codes = set(self.exit_codes.values())
        assert len(codes) == 1, (codes, self.stderr)
        return codes.pop()

    def wait_after_kill(self) -> None:
        """Wait for the processes started directly; exit codes may differ."""
        assert self.wait_until(lambda: self.has_ended, timeout_s=60.0)

    def assert_no_process_left(self, within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [psutil.Process(p).cmdline() for p in self.processes()] == []

    def error_lines(self) -> list[str]:
        """Return the ``error:`` lines of stderr, which must hold no traceback."""
        assert "Traceback" not in self.stderr, self.stderr
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


class Jobs:
    """Starts jobs and kills what is left of them on `close`.

    fresh: start each job as a new process, which imports torch; otherwise fork it. launcher: start
    the ranks of a forked job by ``launch.py``'s launcher; otherwise without one, as Slurm does.
    stem_channels: forks build narrower networks than resnet18's, whose stem has 64 channels.
    """

    def __init__(
        self,
        log_folder: Path,
        *,
        fresh: bool = False,
        launcher: bool = False,
        stem_channels: int | None = None,
    ) -> None:
        self._fresh = fresh
        self._launcher = launcher
        self._added = {"STEM_CHANNELS": str(stem_channels)} if stem_channels else {}
        self._log_folder = log_folder.resolve()
        self._started: list[Job] = []

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        *more: str,
        processes: int = 1,
        environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        fresh: bool | None = None,
    ) -> Job:
        """Start ``launch.py ARGUMENTS --workspace=FOLDER MORE``.

        environ: added to the environment. prefix: a command that runs the rest, of a fresh start.
        processes above 1 sets the number of devices.
        """
        argv = [*arguments, f"--workspace={folder}", *more]
        if processes > 1:
            argv.append(f"--set=platform.num_devices={processes}")
            argv.append(f"--set=batch.per_device={GLOBAL_BATCH // processes}")
        if prefix or (self._fresh if fresh is None else fresh):
            return self._start_fresh(argv, folder, environ or {}, prefix)
        environs = _rank_environs(1 if self._launcher else processes)
        return self._fork(argv, folder, [{**rank, **(environ or {})} for rank in environs])

    def start_ranks(
        self,
        script: Path,
        argv: Sequence[str],
        processes: int,
        environs: Sequence[Mapping[str, str]] | None = None,
        **variables: str,
    ) -> Job:
        """Fork ``SCRIPT ARGV`` once for each rank of a world.

        environs: each rank's variables; by default those of torchrun. variables: of every rank.
        """
        environs = [{**rank, **variables} for rank in environs or _rank_environs(processes)]
        return self._fork(argv, self._log_folder, environs, script)

    def run(self, arguments: Sequence[str], folder: Path, *more: str, processes: int = 1) -> Job:
        """Run to the end, which must succeed."""
        job = self.start(arguments, folder, *more, processes=processes)
        assert job.wait() == 0, job.stderr
        return job

    def close(self) -> None:
        """Kill the processes that a failed test left running."""
        for job in self._started:
            for pid in job.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if job._popen is not None:
                job._popen.wait(timeout=TIMEOUT_S)

    def _start_fresh(
        self,
        argv: Sequence[str],
        folder: Path,
        environ: Mapping[str, str],
        prefix: Sequence[str],
    ) -> Job:
        out, err = self._logs()
        # The short form's fresh processes draw no plots either.
        program = [str(LAUNCH)] if self._fresh else [str(FORK_SERVER), str(LAUNCH)]
        with open(out, "wb") as to, open(err, "wb") as errors:
            popen = subprocess.Popen(
                [*prefix, sys.executable, *program, *argv],
                env=job_environ(**self._added, **environ),
                stdout=to,
                stderr=errors,
                start_new_session=True,
            )
        job = Job(folder, out, err, [popen.pid], _popen=popen)
        self._started.append(job)
        return job

    def _fork(
        self,
        argv: Sequence[str],
        folder: Path,
        environs: Sequence[Mapping[str, str]],
        script: Path | None = None,
    ) -> Job:
        server = fork_server()
        out, err = self._logs()
        pids = [
            server.fork(argv, {**self._added, **environ}, out, err, script) for environ in environs
        ]
        job = Job(folder, out, err, pids, _exit_codes=server.exit_codes)
        self._started.append(job)
        return job

    def _logs(self) -> tuple[Path, Path]:
        name = uuid.uuid4().hex
        return self._log_folder / f"{name}.out", self._log_folder / f"{name}.err"


def _rank_environs(processes: int) -> list[dict[str, str]]:
    """Return the torchrun variables of each rank of one node; none for one process."""
    if processes == 1:
        return [{}]
    world = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [{**world, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]


def read_records(folder: Path, kind: str | None = None) -> list[Record]:
    """Return the records of a run's folder, of one kind or all."""
    return [r for r in read_metrics(folder / "metrics.jsonl") if kind in (None, r.kind)]


def read_losses(folder: Path) -> list[float]:
    """Return the training loss of every recorded step."""
    return [r.values["loss"] for r in read_records(folder, "step")]


@dataclass(frozen=True)
class FinalState:
    """The tensors of a run's newest checkpoint."""

    step: int
    model: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]

    @classmethod
    def read(cls, folder: Path) -> FinalState:
        newest = max((folder / "checkpoints").glob("step-*"))
        return cls(
            int(newest.name.removeprefix("step-")),
            load_file(newest / "model.safetensors"),
            load_file(newest / "state.safetensors"),
        )

    def assert_equal(self, other: FinalState) -> None:
        """Assert bit-for-bit equality."""
        assert self.step == other.step
        for mine, others in ((self.model, other.model), (self.state, other.state)):
            assert mine.keys() == others.keys()
            assert [k for k in mine if not torch.equal(mine[k], others[k])] == []
