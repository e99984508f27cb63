"""One process a device, through torchrun's own agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from image_classification.config.schema import PlatformConfig, RunConfig
from image_classification.core.errors import (
    EXIT_BUG,
    EXIT_DONE,
    EXIT_STOPPED,
    ConfigError,
    DeviceError,
)
from image_classification.core.program import command
from image_classification.launch.agent import Agent, explain_end
from image_classification.launch.outcomes import (
    OUTCOME_FOLDER,
    Outcome,
    gather_outcomes,
    remember,
)

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
_MONITOR_INTERVAL_S = 0.1
_RENDEZVOUS_TIMEOUT_S = 900


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
            f"platform {platform.name} has {platform.num_nodes} machines: start "
            f"{command('launch')} on each with NODE_RANK=0,1,… MASTER_ADDR=HOST "
            "[MASTER_PORT=29500] set, or under torchrun or Slurm; --set platform.num_nodes=1 uses "
            "this machine alone"
        ) from None
    return rank, f"{host}:{port}"


def launch(config: RunConfig, words: Sequence[str]) -> int:
    """Run ``python words`` once per device and wait; return the exit code of the whole.

    Raises:
        ConfigError: see `nodes_from_environment`. DeviceError: the other machines did not come.
    """
    _quieten()
    platform = config.platform
    node_rank, endpoint = nodes_from_environment(platform, os.environ)
    with tempfile.TemporaryDirectory(prefix="image-classification-") as folder:
        os.environ[OUTCOME_FOLDER] = folder
        remember("launcher", str(os.getpid()))
        # Unset, torchrun would give each process one thread.
        os.environ.setdefault(
            "OMP_NUM_THREADS",
            str(max(1, len(os.sched_getaffinity(0)) // platform.num_devices)),
        )
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = _SIGNALS
        # Python's tracker of shared memory cleans up after a killed rank, and need not say so.
        quiet = [os.environ.get("PYTHONWARNINGS", ""), "ignore:resource_tracker:UserWarning"]
        os.environ["PYTHONWARNINGS"] = ",".join(w for w in quiet if w)
        spec = _spec(config, node_rank, endpoint, words)
        agent = Agent(
            spec,
            DefaultLogsSpecs(log_dir=None),
            Path(folder),
            stopped_limit_s=config.run.collective_timeout_s,
        )
        try:
            result = agent.run()
        except SignalException as error:
            outcomes = [o for o in gather_outcomes(Path(folder)) if o.code != EXIT_BUG]
            if outcomes:
                return _tell(outcomes[0])
            print(f"error: stopped by {signal.Signals(error.sigval).name}", file=sys.stderr)
            return EXIT_BUG
        except (DistError, RendezvousError) as error:
            reason = str(error).splitlines()[0]
            raise DeviceError(
                f"machine {node_rank} of {platform.num_nodes} could not meet the others at "
                f"{endpoint} within {_RENDEZVOUS_TIMEOUT_S} s ({reason}); start "
                f"{command('launch')} on every machine, and see that MASTER_ADDR is machine 0 "
                "and MASTER_PORT free and open"
            ) from error
        spec.rdzv_handler.shutdown()
        if not result.is_failed():
            return EXIT_DONE
        return _tell(explain_end(agent.ends, gather_outcomes(Path(folder))))


def _spec(config: RunConfig, node_rank: int, endpoint: str, words: Sequence[str]) -> WorkerSpec:
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
        monitor_interval=_MONITOR_INTERVAL_S,
        master_addr=host if several else None,
        master_port=int(port) if several else None,
        local_addr=local_addr,
    )


def _quieten() -> None:
    """Silence the agent's log of every child's end: ours is one line, printed by `_tell`."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            # Each has a level of its own, so the parent's would not do.
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _tell(end: Outcome) -> int:
    """Print the line of the end that explains the others; return its exit code."""
    where = f"[rank {end.rank}] " if end.rank else ""
    kind = "stopped: " if end.code == EXIT_STOPPED else "error: "
    again = "; start again with --resume auto to continue from the last checkpoint"
    print(f"{kind}{where}{end.message}{again if end.retry else ''}", file=sys.stderr)
    return end.code
