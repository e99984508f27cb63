"""``--emit``: a job file or command that starts a named run on a cluster; nothing is run."""

from __future__ import annotations

import hashlib
import posixpath
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from image_classification.config.schema import RunConfig
from image_classification.core.errors import EXIT_STOPPED, ConfigError

KINDS = {
    "slurm": "slurm.sbatch.j2",
    "kubernetes": "kubernetes.yaml.j2",
    "torchrun": "torchrun.sh.j2",
}
"""Argument of ``--emit`` -> template."""

_IMAGE = "image-classification"
_WORKDIR = "/workspace"
_RUNS = "runs"
# Pod names are this name and about 20 more characters; their limit is 63.
_MAX_NAME = 40
_RESOURCES = {"cuda": "nvidia.com/gpu", "hpu": "habana.ai/gaudi", "xpu": "gpu.intel.com/xe"}
_ILUVATAR_RESOURCE = "iluvatar.com/gpu"


@dataclass(frozen=True)
class Mount:
    """A folder for the container. source: as the user wrote it; target: absolute path inside."""

    source: str
    target: str


@dataclass(frozen=True)
class Plan:
    """What the templates need to know of a run.

    name: of the job, a DNS label of at most 40 characters. title: the run's names. arguments: of
    ``launch.py``. restartable: the same arguments start and continue the run. processes: per node,
    one per device. workers: loader processes per device. data: None if no folder is read. cache:
    folder for the demo data set; None for other data.
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


def render_emission(
    kind: str,
    config: RunConfig,
    argv: Sequence[str],
    words: Sequence[str],
    config_file: Path | None = None,
) -> str:
    """Return the text for ``--emit kind``, one of `KINDS`.

    config: the configuration of ``argv`` as published. argv: the command line, with ``--emit``.
    words: what follows ``python`` to start this program, such as ``launch.py``. config_file: the
    argument of ``--cfg_file``.

    Raises:
        ConfigError: the run cannot be put into a container as asked; see `_check_container`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    plan = make_plan(config, without_emit(argv))
    if kind != "torchrun":
        _check_container(plan, config, config_file)
    environment = Environment(
        loader=PackageLoader("image_classification.cli.emit"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "quote": shlex.quote,
        "host_path": _host_path,
        "option_lines": _option_lines,
        "yaml": _yaml_scalar,
    }
    iluvatar = plan.device_name.startswith("BI-")
    return environment.get_template(KINDS[kind]).render(
        plan=plan,
        image=_IMAGE,
        workdir=_WORKDIR,
        stopped=EXIT_STOPPED,
        resource=_ILUVATAR_RESOURCE if iluvatar else _RESOURCES.get(plan.device),
        torchrun=shlex.join(_torchrun_words()),
        words=shlex.join([*words, *plan.arguments]),
    )


def without_emit(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` without ``--emit KIND``."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--emit":
            next(words, None)
        elif not word.startswith("--emit="):
            kept.append(word)
    return kept


def make_plan(config: RunConfig, arguments: Sequence[str]) -> Plan:
    """Plan the run ``launch.py arguments`` with the configuration ``config``.

    A training run gets ``--workspace`` and ``--resume auto`` if they are missing, so that the same
    command starts and continues it.
    """
    names, run, platform = config.names, config.run, config.platform
    parts = [p for p in (names.model, names.platform, names.precision, names.recipe) if p]
    parts.append(names.mode)
    restartable = run.mode == "convergence" and run.resume in (None, "auto")
    added: list[str] = []
    workspace = run.workspace
    if restartable and workspace is None:
        workspace = f"{_RUNS}/{'-'.join(parts)}"
        added += ["--workspace", workspace]
    if restartable and run.resume is None:
        added += ["--resume", "auto"]
    given = list(arguments)
    # No options are read after "--".
    end = given.index("--") if "--" in given else len(given)
    folder = posixpath.normpath(workspace or _RUNS)
    if folder.split("/")[0] == _RUNS:
        folder = _RUNS
    runs = Mount(folder, _inside(folder))
    is_demo = config.data.path == "demo"
    reads_folder = not is_demo and config.data.backend != "synthetic"
    return Plan(
        name=_label("-".join(parts)),
        title=" ".join(parts),
        arguments=(*given[:end], *added, *given[end:]),
        restartable=restartable,
        nodes=platform.num_nodes,
        processes=platform.num_devices,
        device=platform.device,
        device_name=platform.device_name,
        workers=config.data.workers,
        runs=runs,
        data=Mount(config.data.path, _inside(config.data.path)) if reads_folder else None,
        cache=posixpath.join(runs.target, "cache") if is_demo else None,
    )


def _inside(path: str) -> str:
    """Return the absolute path of ``path`` in the container."""
    return posixpath.normpath(posixpath.join(_WORKDIR, path))


def _label(text: str) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(label) <= _MAX_NAME:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:6]
    return f"{label[: _MAX_NAME - 7].rstrip('-')}-{digest}"


def _check_container(plan: Plan, config: RunConfig, config_file: Path | None) -> None:
    """Check that the paths of the command line can be mounted and exist in the container.

    Raises:
        ConfigError: a path that cannot be mounted, a file outside the mounted folders, or a
            ``--resume PATH``, with which every restart would begin from there.
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
                f"{mount.source} cannot be mounted, as it has {bad!r}; rename or link the folder"
            )
        if _is_below(_WORKDIR, mount.target):
            raise ConfigError(
                f"{mount.source} is {mount.target} in the container and would hide the program "
                f"in {_WORKDIR}; give an absolute path"
            )
    raport = run.raport_file
    files = {
        "--cfg_file": None if config_file is None else str(config_file),
        "--pretrained-from-file": config.model.pretrained_from_file,
        "--resume": None if run.resume == "auto" else run.resume,
        # A relative path is in the run's folder.
        "--raport-file": raport if raport is not None and posixpath.isabs(raport) else None,
    }
    for option, path in files.items():
        if path is not None and not any(_is_below(_inside(path), m.target) for m in mounts):
            folders = " or ".join(mount.source for mount in mounts)
            raise ConfigError(
                f"{option} {path} is not in the container; put the file below {folders}"
            )


def _is_below(path: str, folder: str) -> bool:
    return posixpath.commonpath([folder, path]) == folder


def _host_path(path: str) -> str:
    """Quote a path for the shell; a job starts in the folder it was submitted from."""
    return shlex.quote(path) if posixpath.isabs(path) else f'"$PWD"/{shlex.quote(path)}'


def _option_lines(arguments: Sequence[str]) -> list[str]:
    """Quote arguments for the shell, with an option and its value on one line."""
    lines: list[str] = []
    for word in map(shlex.quote, arguments):
        takes_word = lines and lines[-1].startswith("-") and not set(" =") & set(lines[-1])
        if takes_word and not word.startswith("-"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _yaml_scalar(text: str) -> str:
    """Return ``text`` as YAML would write it, quoted only where needed."""
    return yaml.safe_dump([text], allow_unicode=True, width=float("inf"))[2:].rstrip("\n")


def _torchrun_words() -> list[str]:
    """Return ``torchrun``, if the shell finds the one of this Python; else the module."""
    found = shutil.which("torchrun")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return ["torchrun"]
    return [sys.executable, "-m", "torch.distributed.run"]
