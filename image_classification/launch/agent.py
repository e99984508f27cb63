"""torchrun's agent with two habits more: it ends stopped ranks, and retries only what may help."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

from image_classification.core.errors import EXIT_BUG
from image_classification.launch.outcomes import (
    RESTART_REASON,
    Outcome,
    forget_outcomes,
    gather_outcomes,
)

# A gap between two looks that is longer than this was the agent's own: a suspended machine or
# job must not count as time its ranks were stopped.
_LONGEST_LOOK_S = 2.0
# Once a rank is lost the others can only fail. They get the time to say so, not torchrun's 30 s:
# gloo may wait for the whole collective timeout to send to a process that is dead.
_LOST_GRACE_S = 5


@dataclass
class Ends:
    """How the processes of one start ended.

    first: exit codes (negative: a signal) by global rank, of those that ended before the agent
    ended the rest. stopped_s: the ranks the agent killed for not having run for so long.
    """

    first: dict[int, int] = field(default_factory=dict)
    stopped_s: dict[int, float] = field(default_factory=dict)


def is_stopped(pid: int) -> bool:
    """Return whether the child ``pid`` is stopped by a signal (SIGSTOP, SIGTSTP)."""
    return _peek(pid, os.WSTOPPED) is not None


def exit_code(pid: int) -> int | None:
    """Return how the child ``pid`` ended, None while it runs, leaving it to be waited for."""
    seen = _peek(pid, os.WEXITED)
    if seen is None:
        return None
    return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status


def _peek(pid: int, what: int) -> os.waitid_result | None:
    try:
        return os.waitid(os.P_PID, pid, what | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # waited for already
        return None


def explain_end(ends: Ends, outcomes: list[Outcome]) -> Outcome:
    """Return the one end that explains the others."""
    if outcomes and not outcomes[0].retry and outcomes[0].code != 0:
        return outcomes[0]
    told = {outcome.rank for outcome in outcomes}
    for rank, code in sorted(ends.first.items(), key=lambda pair: (pair[1] >= 0, pair[0])):
        who = f"the process of rank {rank} on {socket.gethostname()}"
        if rank in ends.stopped_s:
            message = f"{who} had not run for {ends.stopped_s[rank]:.0f} s (stopped) and was killed"
            return Outcome(rank, EXIT_BUG, message, retry=True)
        if code < 0:
            message = f"{who} was killed by signal {-code} (exit code {code})"
            return Outcome(rank, EXIT_BUG, message, retry=True)
        if code > 0 and rank not in told:
            return Outcome(rank, EXIT_BUG, f"{who} ended with exit code {code}", retry=True)
    if outcomes:
        return outcomes[0]
    raise AssertionError("no process has ended")


class Agent(LocalElasticAgent):
    """Starts this node's ranks, watches them, and starts them again while restarts are left.

    What a user must mend, a diverged run and a stop that was asked for are not tried again. A
    rank that is stopped for ``stopped_limit_s``, or while another has died, is killed: SIGTERM
    does nothing to a stopped process, and waiting for it would cost the whole grace time.
    """

    def __init__(
        self, spec: WorkerSpec, logs_specs: DefaultLogsSpecs, outcomes: Path, stopped_limit_s: float
    ) -> None:
        super().__init__(spec, logs_specs)
        self._outcomes = outcomes
        self._stopped_limit_s = stopped_limit_s
        self._stopped_s: dict[int, float] = {}
        self._looked = time.monotonic()
        self.ends = Ends()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        forget_outcomes(self._outcomes)
        self.ends = Ends()
        self._stopped_s = {}
        started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        pids = {worker.global_rank: int(worker.id) for worker in worker_group.workers}
        codes = {rank: exit_code(pid) for rank, pid in pids.items()}
        first = {rank: code for rank, code in codes.items() if code}
        self._end_stopped(pids, at_once=bool(first))
        if not first and None in codes.values():
            # torchrun's own look would end the others if a rank died just now, and who died
            # first could no longer be told: it comes only after ours has seen an end.
            return RunResult(state=WorkerState.HEALTHY)
        if first and self._cause(first).retry and self._pcontext is not None:
            self._pcontext.close(signal.SIGTERM, timeout=_LOST_GRACE_S)
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            self._decide(first)
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM) -> None:
        workers = self._worker_group.workers
        self._end_stopped({w.global_rank: int(w.id) for w in workers if w.id}, at_once=True)
        super()._shutdown(death_sig)

    def _end_stopped(self, pids: dict[int, int], at_once: bool) -> None:
        now = time.monotonic()
        passed = min(now - self._looked, _LONGEST_LOOK_S)
        self._looked = now
        for rank, pid in pids.items():
            if not is_stopped(pid):
                self._stopped_s.pop(rank, None)
                continue
            self._stopped_s[rank] = self._stopped_s.get(rank, 0.0) + passed
            if at_once or self._stopped_s[rank] >= self._stopped_limit_s:
                self.ends.stopped_s[rank] = self._stopped_s[rank]
                # Each rank leads a session of its own: its loader workers go with it.
                os.killpg(pid, signal.SIGKILL)

    def _cause(self, first: dict[int, int]) -> Outcome:
        self.ends.first = first
        return explain_end(self.ends, gather_outcomes(self._outcomes))

    def _decide(self, first: dict[int, int]) -> None:
        """Give up the restarts left where another start would end the same way; else announce."""
        cause = self._cause(first)
        if not cause.retry:
            self._remaining_restarts = 0
        if self._remaining_restarts == 0:
            return
        most = self._worker_group.spec.max_restarts
        count = most - self._remaining_restarts + 1
        reason = f"{cause.message}; started again (restart {count} of at most {most})"
        os.environ[RESTART_REASON] = reason
        print(f"warning: {reason}", file=sys.stderr, flush=True)
