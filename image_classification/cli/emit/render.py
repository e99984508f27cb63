"""``--emit``: print how to start a named run on a cluster; nothing is run."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from image_classification.cli.emit.kubernetes import kubernetes
from image_classification.cli.emit.plan import Plan, check_container, make_plan
from image_classification.cli.emit.slurm import slurm
from image_classification.config.schema import RunConfig

KINDS = ("slurm", "kubernetes", "torchrun")

# Of torchrun's agent: a process that dies is answered by starting all of them again.
_RESTARTS = 3


def render_emission(
    kind: str,
    config: RunConfig,
    argv: Sequence[str],
    words: Sequence[str],
    config_file: Path | None = None,
) -> str:
    """Return the text of ``--emit kind``, one of `KINDS`.

    config: what ``argv`` resolves to, as published (no devices looked at). argv: the command
    line, with ``--emit``. words: what follows ``python`` to start this
    program, such as ``launch.py`` as it was typed. config_file: the ``--cfg_file``
    given.

    Raises:
        ConfigError: the run cannot be put into a container as asked; see `check_container`.
    """
    plan = make_plan(config, without_emit(argv))
    if kind == "torchrun":
        return torchrun(plan, words)
    check_container(plan, config, config_file)
    return slurm(plan) if kind == "slurm" else kubernetes(plan)


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


def torchrun(plan: Plan, program: Sequence[str]) -> str:
    """Return a command line for a shell in this folder; on several nodes, the same for each.

    There, the shell's MASTER_ADDR names one of the nodes and MASTER_PORT, else 29500, its port.
    """
    words = [*_torchrun_words(), f"--nnodes={plan.nodes}", f"--nproc-per-node={plan.processes}"]
    if plan.restartable:
        words.append(f"--max-restarts={_RESTARTS}")
    if plan.nodes == 1:
        words.append("--standalone")
        text = shlex.join(words)
    else:
        words += ["--rdzv-backend=c10d", f"--rdzv-id={plan.name}"]
        text = f'{shlex.join(words)} --rdzv-endpoint="${{MASTER_ADDR:?}}:${{MASTER_PORT:-29500}}"'
    return f"{text} {shlex.join([*program, *plan.arguments])}"


def _torchrun_words() -> list[str]:
    """``torchrun`` where the shell finds the one that belongs to this Python."""
    found = shutil.which("torchrun")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return ["torchrun"]
    return [sys.executable, "-m", "torch.distributed.run"]
