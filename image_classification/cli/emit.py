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
from jinja2 import Environment, PackageLoader, StrictUndefined

from image_classification.config.schema import RunConfig
from image_classification.core.errors import EXIT_STOPPED, ConfigError

_WORKDIR = "/workspace"
_RUNS = "runs"
_RESOURCES = {"cuda": "nvidia.com/gpu", "hpu": "habana.ai/gaudi", "xpu": "gpu.intel.com/xe"}
_ILUVATAR_RESOURCE = "iluvatar.com/gpu"


@dataclass(frozen=True)
class Mount:
    """A folder for the container. source: as the user wrote it; target: absolute path inside."""

    source: str
    target: str


@dataclass(frozen=True)
class Job:
    """What the templates need to know of a run, besides its configuration.

    name: a DNS label of at most 40 characters. title: the run's names. arguments: of ``launch.py``.
    restartable: the same arguments start and continue the run. data: None if no folder is read.
    cache: folder for the demo data set; None for other data.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    restartable: bool
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
    """Return the text for ``--emit kind``: ``slurm``, ``kubernetes`` or ``torchrun``.

    config: the configuration of ``argv`` as published. argv: the command line, with ``--emit``.
    words: what follows ``python`` to start this program, such as ``launch.py``. config_file: the
    argument of ``--cfg_file``.

    Raises:
        ConfigError: a path that cannot be mounted in a container, a file outside the mounted
            folders, or a ``--resume PATH``, with which every restart would begin from there.
    """
    job = _make_job(config, without_emit(argv))
    if kind != "torchrun":
        _check_container(job, config, config_file)
    environment = Environment(
        loader=PackageLoader("image_classification.cli"),
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
    platform = config.platform
    iluvatar = platform.device_name.startswith("BI-")
    # The shell must find the torchrun of this Python.
    found = shutil.which("torchrun")
    on_path = found is not None and Path(found).parent == Path(sys.executable).parent
    torchrun = ["torchrun"] if on_path else [sys.executable, "-m", "torch.distributed.run"]
    return environment.get_template(f"{kind}.j2").render(
        job=job,
        platform=platform,
        workers=config.data.workers,
        image="image-classification",
        workdir=_WORKDIR,
        stopped=EXIT_STOPPED,
        resource=_ILUVATAR_RESOURCE if iluvatar else _RESOURCES.get(platform.device),
        torchrun=shlex.join(torchrun),
        words=shlex.join([*words, *job.arguments]),
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


def _make_job(config: RunConfig, given: list[str]) -> Job:
    """Return the job that runs ``launch.py given``.

    A training run gets ``--workspace`` and ``--resume auto`` if they are missing, so that the same
    command starts and continues it.
    """
    names, run = config.names, config.run
    parts = [names.model, names.platform, names.precision, names.recipe, names.mode]
    restartable = run.mode == "convergence" and run.resume in (None, "auto")
    added: list[str] = []
    workspace = run.workspace
    if restartable and workspace is None:
        workspace = f"{_RUNS}/{'-'.join(parts)}"
        added += ["--workspace", workspace]
    if restartable and run.resume is None:
        added += ["--resume", "auto"]
    # No options are read after "--".
    end = given.index("--") if "--" in given else len(given)
    folder = posixpath.normpath(workspace or _RUNS)
    if folder.split("/")[0] == _RUNS:
        folder = _RUNS
    runs, data = Mount(folder, _inside(folder)), config.data
    return Job(
        name=_label("-".join(parts)),
        title=" ".join(parts),
        arguments=(*given[:end], *added, *given[end:]),
        restartable=restartable,
        runs=runs,
        data=(
            None
            if data.path == "demo" or data.backend == "synthetic"
            else Mount(data.path, _inside(data.path))
        ),
        cache=posixpath.join(runs.target, "cache") if data.path == "demo" else None,
    )


def _inside(path: str) -> str:
    """Return the absolute path of ``path`` in the container."""
    return posixpath.normpath(posixpath.join(_WORKDIR, path))


def _label(text: str) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    # Pod names are this name and about 20 more characters; their limit is 63.
    if len(label) <= 40:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:6]
    return f"{label[:33].rstrip('-')}-{digest}"


def _check_container(job: Job, config: RunConfig, config_file: Path | None) -> None:
    run = config.run
    if run.mode == "convergence" and not job.restartable:
        raise ConfigError(
            f"--resume {run.resume} would begin there again at every restart; give that run's "
            "folder as --workspace and leave --resume out, or start it with --emit torchrun"
        )
    mounts = [job.runs] if job.data is None else [job.runs, job.data]
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
