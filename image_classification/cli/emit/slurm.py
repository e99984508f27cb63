"""``--emit slurm``: an sbatch file for pyxis and enroot, one task a device."""

from __future__ import annotations

import posixpath
import shlex

from image_classification.cli.emit.plan import IMAGE, WORKDIR, Plan
from image_classification.core.errors import EXIT_STOPPED

# Saving takes seconds; Slurm may send the signal up to a minute early, never late.
_NOTICE_S = 120
# The first rank to end may be minutes before rank 0 has written its report.
_WAIT_S = 300


def slurm(plan: Plan) -> str:
    """Return the file to submit with ``sbatch``; it requeues itself when the run ends with 75."""
    return "\n".join(
        [*_directives(plan), "set -u", "", *_folders(plan), "", *_command(plan), "", *_steps(plan)]
    )


def _directives(plan: Plan) -> list[str]:
    lines = [
        "#!/bin/bash",
        f"# {plan.title}",
        "#",
        "# FILL IN your account, your partition, and a time the partition allows.",
        "#SBATCH --account=ACCOUNT",
        "#SBATCH --partition=PARTITION",
        "#SBATCH --time=24:00:00",
        "#",
        f"#SBATCH --job-name={plan.name}",
        "#SBATCH --output=%x-%j.out",
        "#SBATCH --open-mode=append",
        "#",
        "# One task is one device; each task sees all the devices of its node.",
        f"#SBATCH --nodes={plan.nodes}",
        f"#SBATCH --ntasks-per-node={plan.processes}",
    ]
    if plan.device != "cpu":
        lines.append(f"#SBATCH --gpus-per-node={plan.processes}")
    if plan.processes > 1:
        lines += ["#SBATCH --exclusive", "#SBATCH --mem=0"]
    else:
        lines.append(f"#SBATCH --cpus-per-task={_cpus(plan)}")
    return [
        *lines,
        "#",
        f"# {_NOTICE_S} s before the time limit every task is told to save; all then end with "
        f"{EXIT_STOPPED}.",
        f"#SBATCH --signal=USR1@{_NOTICE_S}",
        "# Slurm itself starts the job again when it was preempted or a node failed.",
        "#SBATCH --requeue",
    ]


def _cpus(plan: Plan) -> int:
    return plan.workers + 1


def _folders(plan: Plan) -> list[str]:
    lines = [
        "# FILL IN where these are on the nodes: the image",
        f"# (enroot import --output {IMAGE}.sqsh dockerd://{IMAGE}),",
        "# " + ("the data, " if plan.data else "") + "and a shared folder for the runs.",
        f'image="$PWD/{IMAGE}.sqsh"',
    ]
    if plan.data:
        lines.append(f"data={_host(plan.data.source)}")
    lines.append(f"runs={_host(plan.runs.source)}")
    mounts = f'mounts="$runs":{shlex.quote(plan.runs.target)}'
    if plan.data:
        mounts += f',"$data":{shlex.quote(plan.data.target)}:ro'
    lines.append(mounts)
    if plan.cache:
        lines.append(f"export IMAGE_CLASSIFICATION_CACHE={shlex.quote(plan.cache)}")
    return lines


def _host(path: str) -> str:
    # A job starts in the folder it was submitted from.
    return shlex.quote(path) if posixpath.isabs(path) else f'"$PWD"/{shlex.quote(path)}'


def _command(plan: Plan) -> list[str]:
    return ["run=(", "    python launch.py", *_lines(plan.arguments), ")"]


def _lines(arguments: tuple[str, ...]) -> list[str]:
    """One option with its argument a line."""
    lines: list[str] = []
    for word in map(shlex.quote, arguments):
        follows = lines and lines[-1].startswith("    -") and " " not in lines[-1].strip()
        if follows and not word.startswith("-") and "=" not in lines[-1]:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return lines


def _steps(plan: Plan) -> list[str]:
    binding = ["--cpu-bind=none"]
    if plan.device != "cpu":
        binding.append("--gpu-bind=none")
    if plan.processes == 1:
        binding.append(f"--cpus-per-task={_cpus(plan)}")
    return [
        'mkdir -p "$runs"',
        "status=0",
        "# The first task to end must not take the others with it while they still save.",
        "srun \\",
        f"    --nodes={plan.nodes} --ntasks={plan.nodes * plan.processes} "
        f"--ntasks-per-node={plan.processes} \\",
        f"    {' '.join(binding)} \\",
        f"    --kill-on-bad-exit=0 --wait={_WAIT_S} \\",
        '    --container-image="$image" --container-mounts="$mounts" \\',
        f"    --container-workdir={WORKDIR} \\",
        '    "${run[@]}" || status=$?',
        "",
        f"# {EXIT_STOPPED}: stopped by a signal after saving. scancel ends this script as well.",
        f'if [ "$status" -eq {EXIT_STOPPED} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID" ||',
        '        echo "error: not requeued; submit this file again to continue" >&2',
        "fi",
        'exit "$status"',
    ]
