"""Start one process per device with torchrun's agent, monitor them, report failures."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from image_classification.config.schema import PlatformConfig, RunConfig
from image_classification.core.errors import (
    EXIT_BUG,
    EXIT_DONE,
    ConfigError,
    DeviceError,
)
from image_classification.core.program import command
from image_classification.launch.outcomes import (
    OUTCOME_FOLDER,
    RESTART_REASON,
    Outcome,
    keep_for_restart,
    read_outcomes,
)

_RENDEZVOUS_TIMEOUT_S = 900
# A longer gap between two checks means that the agent itself was suspended with its machine or
# job; that time does not count as time in which its ranks were stopped.
_MAX_CHECK_INTERVAL_S = 2.0
# After a rank is lost, the others will fail too. They get this long to report it, not torchrun's
# 30 s: gloo may wait for the whole collective timeout to send to a dead process.
_LOST_RANK_GRACE_S = 5


def launch(config: RunConfig, words: Sequence[str]) -> int:
    """Run ``python words`` once per device and wait; return the exit code of the whole run.

    Raises:
        ConfigError: see `nodes_from_environment`. DeviceError: the other machines did not join.
    """
    # Instead of the agent's log of every child's end, `launch` prints one line.
    for logger in list(logging.root.manager.loggerDict):
        if logger.startswith("torch.distributed.elastic"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
    platform = config.platform
    node_rank, endpoint = nodes_from_environment(platform, os.environ)
    with tempfile.TemporaryDirectory(prefix="image-classification-") as name:
        folder = Path(name)
        os.environ[OUTCOME_FOLDER] = name
        keep_for_restart("launcher", str(os.getpid()))
        # Unset, torchrun would give each process one thread.
        threads = max(1, len(os.sched_getaffinity(0)) // platform.num_devices)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
        # Python's tracker of shared memory warns when it cleans up after a killed rank.
        given = os.environ.get("PYTHONWARNINGS", "")
        os.environ["PYTHONWARNINGS"] = f"{given},ignore:resource_tracker:UserWarning".strip(",")
        spec = _worker_spec(config, node_rank, endpoint, words)
        agent = Agent(spec, folder, stopped_limit_s=config.run.collective_timeout_s)
        try:
            result = agent.run()
        except SignalException as error:
            stopped = Outcome(0, EXIT_BUG, f"stopped by {signal.Signals(error.sigval).name}")
            outcomes = [o for o in read_outcomes(folder) if o.code != EXIT_BUG]
            return (outcomes or [stopped])[0].show()
        except (DistError, RendezvousError) as error:
            reason = str(error).splitlines()[0]
            raise DeviceError(
                f"machine {node_rank} of {platform.num_nodes} could not connect to the others at "
                f"{endpoint} within {_RENDEZVOUS_TIMEOUT_S} s ({reason}); start "
                f"{command('launch')} on every machine, and check that MASTER_ADDR is machine 0 "
                "and MASTER_PORT is free and open"
            ) from error
        spec.rdzv_handler.shutdown()
        if not result.is_failed():
            return EXIT_DONE
        cause = root_cause(agent.ends, read_outcomes(folder))
        if cause.retry:
            remedy = "start again with --resume auto to continue from the last checkpoint"
            cause = replace(cause, message=f"{cause.message}; {remedy}")
        return cause.show()


def nodes_from_environment(platform: PlatformConfig, environ: Mapping[str, str]) -> tuple[int, str]:
    """Return this node's rank and the rendezvous address ``host:port``.

    Raises:
        ConfigError: several nodes without NODE_RANK and MASTER_ADDR.
    """
    if platform.num_nodes == 1:
        return 0, "127.0.0.1:0"
    try:
        rank, host = int(environ["NODE_RANK"]), environ["MASTER_ADDR"]
        port = int(environ.get("MASTER_PORT", "29500"))
    except (KeyError, ValueError):
        raise ConfigError(
            f"platform {platform.name} has {platform.num_nodes} machines: start "
            f"{command('launch')} on each with NODE_RANK=0,1,… MASTER_ADDR=HOST "
            "[MASTER_PORT=29500] set, or under torchrun or Slurm; --set platform.num_nodes=1 uses "
            "this machine alone"
        ) from None
    return rank, f"{host}:{port}"


def _worker_spec(
    config: RunConfig, node_rank: int, endpoint: str, words: Sequence[str]
) -> WorkerSpec:
    platform = config.platform
    several = platform.num_nodes > 1
    # Resolving this machine's own name can hang for minutes where there is no DNS.
    local_addr = None if several else "127.0.0.1"
    host, _, port = endpoint.rpartition(":")
    parameters = RendezvousParameters(
        backend="static" if several else "c10d",
        endpoint=endpoint,
        run_id=os.environ.get("RUN_ID", "image-classification" if several else uuid.uuid4().hex),
        min_nodes=platform.num_nodes,
        max_nodes=platform.num_nodes,
        local_addr=local_addr,
        timeout=_RENDEZVOUS_TIMEOUT_S,
        **({"rank": node_rank} if several else {}),
    )
    return WorkerSpec(
        role="rank",
        local_world_size=platform.num_devices,
        entrypoint=sys.executable,
        args=("-u", *words),
        rdzv_handler=get_rendezvous_handler(parameters),
        max_restarts=config.run.max_restarts,
        monitor_interval=0.1,
        master_addr=host if several else None,
        master_port=int(port) if several else None,
        local_addr=local_addr,
    )


@dataclass
class ProcessEnds:
    """How the processes of one start ended.

    exit_codes: by global rank, not 0, of those that ended before the agent ended the rest;
    negative: a signal. stopped_s: by rank, how long those that the agent killed had been stopped.
    """

    exit_codes: dict[int, int] = field(default_factory=dict)
    stopped_s: dict[int, float] = field(default_factory=dict)


def root_cause(ends: ProcessEnds, outcomes: list[Outcome]) -> Outcome:
    """Return the one outcome that explains the others; at least one process must have ended.

    outcomes: as `read_outcomes` sorts them. An error that a rank reported comes first, then a rank
    that was stopped, killed or ended without a report, then a rank that lost contact with another.
    """
    if outcomes and not outcomes[0].retry and outcomes[0].code != 0:
        return outcomes[0]
    reported = {outcome.rank for outcome in outcomes}
    for rank, code in sorted(ends.exit_codes.items(), key=lambda pair: (pair[1] >= 0, pair[0])):
        if rank in ends.stopped_s:
            end = f"had not run for {ends.stopped_s[rank]:.0f} s (stopped) and was killed"
        elif code < 0:
            end = f"was killed by signal {-code} (exit code {code})"
        elif rank not in reported:
            end = f"ended with exit code {code}"
        else:
            continue
        message = f"the process of rank {rank} on {socket.gethostname()} {end}"
        return Outcome(rank, EXIT_BUG, message, retry=True)
    return outcomes[0]


class Agent(LocalElasticAgent):
    """torchrun's agent, which also ends stopped ranks and restarts only where that may help.

    A user's error, a diverged run and a requested stop are not tried again. A rank that is stopped
    for ``stopped_limit_s``, or while another rank has died, is killed: a stopped process does not
    react to SIGTERM, and waiting for it would take the whole grace time.
    """

    def __init__(self, spec: WorkerSpec, outcome_folder: Path, stopped_limit_s: float) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=None))
        self._outcome_folder = outcome_folder
        self._stopped_limit_s = stopped_limit_s
        self._stopped_s: dict[int, float] = {}
        self._last_check = time.monotonic()
        self.ends = ProcessEnds()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        for path in self._outcome_folder.glob("rank-*.json"):
            path.unlink()
        self.ends = ProcessEnds()
        self._stopped_s = {}
        started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {w.global_rank: exit_code(int(w.id)) for w in worker_group.workers}
        failed = {rank: code for rank, code in codes.items() if code}
        self._end_stopped(at_once=bool(failed))
        if not failed and None in codes.values():
            # torchrun's own check ends all others as soon as one rank has died, so it runs only
            # after this one has seen which rank died first.
            return RunResult(state=WorkerState.HEALTHY)
        self.ends.exit_codes = failed
        if failed and self._cause().retry and self._pcontext is not None:
            self._pcontext.close(signal.SIGTERM, timeout=_LOST_RANK_GRACE_S)
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            self._decide_restart()
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM) -> None:
        self._end_stopped(at_once=True)
        super()._shutdown(death_sig)

    def _end_stopped(self, at_once: bool) -> None:
        """Kill ranks that are stopped: ``at_once``, or once they reach the limit."""
        now = time.monotonic()
        passed_s = min(now - self._last_check, _MAX_CHECK_INTERVAL_S)
        self._last_check = now
        workers = self._worker_group.workers
        for rank, pid in [(w.global_rank, int(w.id)) for w in workers if w.id]:
            if not is_stopped(pid):
                self._stopped_s.pop(rank, None)
                continue
            self._stopped_s[rank] = self._stopped_s.get(rank, 0.0) + passed_s
            if at_once or self._stopped_s[rank] >= self._stopped_limit_s:
                self.ends.stopped_s[rank] = self._stopped_s[rank]
                # Each rank leads its own session: its loader workers are killed with it.
                os.killpg(pid, signal.SIGKILL)

    def _cause(self) -> Outcome:
        return root_cause(self.ends, read_outcomes(self._outcome_folder))

    def _decide_restart(self) -> None:
        """Print the reason of the restart, or cancel it if another start would end the same way."""
        cause = self._cause()
        if not cause.retry:
            self._remaining_restarts = 0
        if self._remaining_restarts == 0:
            return
        limit = self._worker_group.spec.max_restarts
        count = limit - self._remaining_restarts + 1
        reason = f"{cause.message}; started again (restart {count} of at most {limit})"
        os.environ[RESTART_REASON] = reason
        print(f"warning: {reason}", file=sys.stderr, flush=True)


def is_stopped(pid: int) -> bool:
    """Return whether the child ``pid`` is stopped by a signal (SIGSTOP, SIGTSTP)."""
    return _child_state(pid, os.WSTOPPED) is not None


def exit_code(pid: int) -> int | None:
    """Return the exit code of the child ``pid`` without reaping it; None while it runs."""
    state = _child_state(pid, os.WEXITED)
    if state is None:
        return None
    return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status


def _child_state(pid: int, which: int) -> os.waitid_result | None:
    try:
        return os.waitid(os.P_PID, pid, which | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # reaped already
        return None
