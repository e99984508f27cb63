"""What every kind of ``--emit`` needs to know of a run: processes, arguments, folders."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from image_classification.config.schema import RunConfig
from image_classification.core.errors import ConfigError

IMAGE = "image-classification"
WORKDIR = "/workspace"
_RUNS = "runs"
# Names of pods are made of this one and about twenty characters more; 63 is their limit.
_MAX_NAME = 40


@dataclass(frozen=True)
class Mount:
    """A folder given to the container. source: as written, perhaps relative; target: absolute."""

    source: str
    target: str


@dataclass(frozen=True)
class Plan:
    """A run as a cluster sees it.

    name: of the job, a DNS label of at most 40 characters. title: the run's names. arguments:
    what follows ``launch.py``. restartable: the arguments continue the run when given again.
    nodes; processes: a node, one a device. workers: loader processes a device. data: None where
    nothing is read from a folder. cache: where the demo data set is kept, None for other data.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    restartable: bool
    nodes: int
    processes: int
    device: str
    device_name: str
    workers: int
    runs: Mount
    data: Mount | None
    cache: str | None


def make_plan(config: RunConfig, arguments: Sequence[str]) -> Plan:
    """Plan ``launch.py arguments``, which resolved to ``config``.

    A training run gets a folder of its own and ``--resume auto`` where they are not given, so
    that the same command starts it and continues it.
    """
    names = config.names
    parts = [p for p in (names.model, names.platform, names.precision, names.recipe) if p]
    parts.append(names.mode)
    run = config.run
    restartable = run.mode == "convergence" and run.resume in (None, "auto")
    own: list[str] = []
    workspace = run.workspace
    if restartable and workspace is None:
        workspace = f"{_RUNS}/{'-'.join(parts)}"
        own += ["--workspace", workspace]
    if restartable and run.resume is None:
        own += ["--resume", "auto"]
    given = list(arguments)
    # What follows -- is no option any more.
    end = given.index("--") if "--" in given else len(given)
    runs = _runs_mount(workspace)
    demo = config.data.path == "demo"
    reads = not demo and config.data.backend != "synthetic"
    return Plan(
        name=_label("-".join(parts)),
        title=" ".join(parts),
        arguments=(*given[:end], *own, *given[end:]),
        restartable=restartable,
        nodes=config.platform.num_nodes,
        processes=config.platform.num_devices,
        device=config.platform.device,
        device_name=config.platform.device_name,
        workers=config.data.workers,
        runs=runs,
        data=Mount(config.data.path, inside(config.data.path)) if reads else None,
        cache=posixpath.join(runs.target, "cache") if demo else None,
    )


def inside(path: str) -> str:
    """Return where ``path`` is in the container, whose working folder is `WORKDIR`."""
    return posixpath.normpath(posixpath.join(WORKDIR, path))


def _runs_mount(workspace: str | None) -> Mount:
    folder = posixpath.normpath(workspace or _RUNS)
    if folder.split("/")[0] == _RUNS:
        folder = _RUNS
    return Mount(folder, inside(folder))


def _label(text: str) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(label) <= _MAX_NAME:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:6]
    return f"{label[: _MAX_NAME - 7].rstrip('-')}-{digest}"


def check_container(plan: Plan, config: RunConfig, config_file: Path | None) -> None:
    """See that what the command names can be mounted, and is then seen in the container.

    Raises:
        ConfigError: a path that cannot be mounted, a file outside the mounted folders, or a
            ``--resume PATH``, from which every restart would begin again.
    """
    run = config.run
    if run.mode == "convergence" and not plan.restartable:
        raise ConfigError(
            f"--resume {run.resume} would begin there again at every restart; give that run's "
            "folder as --workspace and leave --resume out, or start it with --emit torchrun"
        )
    mounts = [plan.runs] if plan.data is None else [plan.runs, plan.data]
    for mount in mounts:
        bad = next((c for c in ":,\n" if c in mount.source), None)
        if bad is not None:
            raise ConfigError(
                f"{mount.source} cannot be mounted, as it holds {bad!r}; rename or link the folder"
            )
        if posixpath.commonpath([WORKDIR, mount.target]) == mount.target:
            raise ConfigError(
                f"{mount.source} is {mount.target} in the container and would hide the program "
                f"in {WORKDIR}; give an absolute path"
            )
    raport = run.raport_file
    files = {
        "--cfg_file": None if config_file is None else str(config_file),
        "--pretrained-from-file": config.model.pretrained_from_file,
        "--resume": None if run.resume == "auto" else run.resume,
        # A relative one is in the run's folder.
        "--raport-file": raport if raport is not None and posixpath.isabs(raport) else None,
    }
    for option, path in files.items():
        seen = (path is None) or any(_holds(mount, inside(path)) for mount in mounts)
        if not seen:
            folders = " or ".join(mount.source for mount in mounts)
            raise ConfigError(
                f"{option} {path} is not in the container; put the file below {folders}"
            )


def _holds(mount: Mount, target: str) -> bool:
    return posixpath.commonpath([mount.target, target]) == mount.target
