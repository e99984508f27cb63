"""One process a device, through torchrun's own agent."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from image_classification.config.schema import PlatformConfig
from image_classification.core.errors import (
    EXIT_BUG,
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_STOPPED,
    EXIT_USER,
    ConfigError,
)

OUTCOME_FOLDER = "IMAGE_CLASSIFICATION_OUTCOMES"
"""Environment variable: where each process started here leaves how it ended."""

# Which end explains the whole run's: one rank's error makes the others fail in other ways.
_SEVERITY = (EXIT_USER, EXIT_DIVERGED, EXIT_STOPPED, EXIT_BUG, EXIT_DONE)


@dataclass(frozen=True)
class Outcome:
    """How one process ended: exit code and, unless 0, the line to show. rank is global."""

    rank: int
    code: int
    message: str


def leave_outcome(outcome: Outcome, environ: Mapping[str, str] | None = None) -> bool:
    """Leave ``outcome`` for the parent; False when no parent of ours is listening."""
    folder = (os.environ if environ is None else environ).get(OUTCOME_FOLDER)
    if folder is None:
        return False
    path = Path(folder) / f"rank-{outcome.rank}.json"
    path.write_text(json.dumps(vars(outcome)))
    return True


def _gather(folder: Path) -> list[Outcome]:
    found = [Outcome(**json.loads(p.read_text())) for p in folder.glob("rank-*.json")]
    return sorted(found, key=lambda o: (_SEVERITY.index(o.code), o.rank))


def nodes_from_environment(platform: PlatformConfig, environ: Mapping[str, str]) -> tuple[int, str]:
    """Return this node's rank and the rendezvous address ``host:port``.

    One node needs nothing. Several are described by NODE_RANK, MASTER_ADDR and MASTER_PORT.

    Raises:
        ConfigError: the platform has several nodes and the environment does not say which one
            this is.
    """
    if platform.num_nodes == 1:
        return 0, "127.0.0.1:0"
    try:
        rank, host = int(environ["NODE_RANK"]), environ["MASTER_ADDR"]
        port = int(environ.get("MASTER_PORT", "29500"))
    except (KeyError, ValueError):
        raise ConfigError(
            f"platform {platform.name} has {platform.num_nodes} machines: start launch.py on each "
            "with NODE_RANK=0,1,… MASTER_ADDR=HOST [MASTER_PORT=29500] set, or under torchrun or "
            "Slurm; --set platform.num_nodes=1 uses this machine alone"
        ) from None
    return rank, f"{host}:{port}"


def launch(platform: PlatformConfig, script: str, argv: Sequence[str]) -> int:
    """Run ``script argv`` once a device and wait; return the exit code of the whole.

    Raises:
        ConfigError: see `nodes_from_environment`.
    """
    _quieten()
    processes = platform.num_devices
    node_rank, endpoint = nodes_from_environment(platform, os.environ)
    several = platform.num_nodes > 1
    with tempfile.TemporaryDirectory(prefix="image-classification-") as folder:
        os.environ[OUTCOME_FOLDER] = folder
        # Unset, torchrun would give each process one thread.
        os.environ.setdefault(
            "OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes))
        )
        config = LaunchConfig(
            min_nodes=platform.num_nodes,
            max_nodes=platform.num_nodes,
            nproc_per_node=processes,
            run_id=os.environ.get(
                "RUN_ID", "image-classification" if several else uuid.uuid4().hex
            ),
            rdzv_backend="static" if several else "c10d",
            rdzv_endpoint=endpoint,
            rdzv_configs={"rank": node_rank} if several else {},
            max_restarts=0,
            # Resolving this machine's own name can hang for minutes where there is no DNS.
            local_addr=None if several else "127.0.0.1",
            logs_specs=DefaultLogsSpecs(log_dir=None),
            signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        )
        try:
            elastic_launch(config, sys.executable)("-u", script, *argv)
            return EXIT_DONE
        except ChildFailedError as error:
            return _explain(_gather(Path(folder)), error)
        except SignalException as error:
            outcomes = [o for o in _gather(Path(folder)) if o.code != EXIT_BUG]
            if outcomes:
                return _explain(outcomes, None)
            print(f"error: stopped by {signal.Signals(error.sigval).name}", file=sys.stderr)
            return EXIT_BUG


def _quieten() -> None:
    """Silence the agent's log of every child's end: ours is one line, printed by `_explain`."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            # Each has a level of its own, so the parent's would not do.
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _explain(outcomes: list[Outcome], error: ChildFailedError | None) -> int:
    if outcomes and outcomes[0].code != EXIT_DONE:
        worst = outcomes[0]
        where = f"[rank {worst.rank}] " if worst.rank else ""
        kind = "stopped: " if worst.code == EXIT_STOPPED else "error: "
        print(f"{kind}{where}{worst.message}", file=sys.stderr)
        return worst.code
    assert error is not None
    rank, failure = error.get_first_failure()
    how = f"killed by signal {-failure.exitcode}" if failure.exitcode < 0 else "ended"
    print(
        f"error: the process of rank {rank} on {socket.gethostname()} was {how} (exit code "
        f"{failure.exitcode}); start again with --resume auto to continue from its last checkpoint",
        file=sys.stderr,
    )
    return EXIT_BUG
