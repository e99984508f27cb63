"""Run what a command line asks for: in this process, or in one process per device."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from image_classification.config.keys import Override
from image_classification.config.resolve import LayeredRun
from image_classification.config.schema import RunConfig
from image_classification.core.errors import (
    EXIT_BUG,
    ConfigError,
    DeviceError,
    UserError,
    WorkspaceError,
)
from image_classification.core.types import Activity, DevicesFound, Record, WorldInfo
from image_classification.data.formats.folder import check_classes
from image_classification.data.tools.demo import resolve_data_path
from image_classification.devices.accelerator import Accelerator, get_accelerator, out_of_memory
from image_classification.devices.cuda import set_affinity
from image_classification.distributed.collectives import AnyRank, agree_max, broadcast_text
from image_classification.distributed.launcher_env import detect_world, restart_count
from image_classification.distributed.world import JoinError, lost_peer_message, process_group
from image_classification.engine import build
from image_classification.engine.benchmark import benchmark_data, benchmark_inference
from image_classification.engine.evaluate import evaluate_run
from image_classification.engine.fit_memory import fit_memory
from image_classification.engine.runs import Run
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train
from image_classification.launch.data_split import use_split_of_run
from image_classification.launch.outcomes import Outcome, end_with_launcher, report_outcome
from image_classification.launch.processes import launch
from image_classification.launch.recorder import RunRecorder
from image_classification.launch.workspace import (
    ResumePoint,
    apply_resume_point,
    check_restarts,
    find_resume_point,
    locked,
)
from image_classification.reporting.trackers.sink import check_trackers


@dataclass(frozen=True)
class Mode:
    """A value of ``--mode``. build: adds the mode's parts to a run; records: runs it."""

    build: Callable[[Run], Run]
    records: Callable[[Any, StopRequest], Iterator[Record]]


MODES = {
    "convergence": Mode(build.build_training, train),
    "benchmark_training": Mode(build.build_training, train),
    "benchmark_training_short": Mode(build.build_training, train),
    "evaluate": Mode(build.build_evaluation, evaluate_run),
    "benchmark_inference": Mode(build.build_evaluation, benchmark_inference),
    "benchmark_data": Mode(build.build_loader_benchmark, benchmark_data),
}

# Modes that do not run the network on ``batch.per_device`` images.
_OTHER_BATCHES = ("benchmark_inference", "benchmark_data")


def start_run(
    layered: LayeredRun, words: Sequence[str], argv: Sequence[str], opens_page: bool = False
) -> int:
    """Run ``layered`` on this machine's devices; return the exit code.

    Starts one process per device, unless one is enough, or torchrun, Slurm or MPI started this
    process. words: what follows ``python`` to start this program again. argv: its arguments.
    opens_page: show the report in the browser at the end.
    """
    end_with_launcher()
    world = detect_world(os.environ)
    if world is None and "NODE_RANK" in os.environ:
        layered = layered.replace(_nodes_from_environment(layered))
    if world is None or world.rank == 0:
        check_trackers(layered["run.trackers"])
    accelerator = get_accelerator(layered["platform.device"])
    found = accelerator.found()
    # Any number of processes can share a CPU, so its count is no limit.
    available = None if found.kind == "cpu" else found
    if world is None:
        config = layered.on(available)
        if config.world_size > 1 or config.run.max_restarts > 0:
            _check_before_launch(config, accelerator)
            return launch(config, (*words, *argv))
        if config.optim.gradient_compression != "none":
            unused = "optim.gradient_compression has no effect: one process exchanges no gradients"
            config = replace(config, warnings=(*config.warnings, unused))
    else:
        config = layered.on(available, world.world_size, world.num_nodes)
        check_restarts(config, os.environ)
    return _run_rank(config, world or WorldInfo(), accelerator, found, opens_page)


def _nodes_from_environment(layered: LayeredRun) -> Override:
    """Return the number of nodes: NNODES, or the platform's, where NODE_RANK is set."""
    text = os.environ.get("NNODES", str(layered["platform.num_nodes"]))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"NNODES={text} in the environment is not a number of machines")
    origin = "NNODES and NODE_RANK in the environment"
    return Override("platform.num_nodes", int(text), origin)


def _check_before_launch(config: RunConfig, accelerator: Accelerator) -> None:
    """Raise here the errors that would otherwise occur in every process."""
    accelerator.check_precision(config.precision.name, config.precision.dtype)
    if config.data.backend != "synthetic":
        root = resolve_data_path(config.data.path)
        # An evaluation maps the classes by name once its weights are open.
        num_classes = None if config.run.mode == "evaluate" else config.model.num_classes
        check_classes(root, "val", num_classes, config.data.format)


def _run_rank(
    config: RunConfig,
    world: WorldInfo,
    accelerator: Accelerator,
    found: DevicesFound,
    opens_page: bool,
) -> int:
    """Run this process's rank; return its exit code."""
    timeout_s = config.run.collective_timeout_s
    try:
        set_affinity(config.platform.gpu_affinity, world.local_rank, world.local_world_size)
        device = accelerator.device(world.local_rank)
        with process_group(world, accelerator.process_group_backend, timeout_s, device):
            try:
                return _run_joined(config, world, accelerator, device, found, opens_page)
            except (RuntimeError, MemoryError) as error:
                if out_of_memory(error):
                    raise out_of_memory_error(config) from error
                message = lost_peer_message(error, timeout_s)
                if message is None:
                    raise
                _exit_at_once(Outcome(world.rank, EXIT_BUG, message, retry=True))
    except UserError as error:
        retry = isinstance(error, JoinError)
        if report_outcome(Outcome(world.rank, error.exit_code, error.message, retry)):
            return error.exit_code
        raise


def out_of_memory_error(config: RunConfig) -> DeviceError:
    """Return the error of a run whose batch does not fit into memory, with the remedy."""
    per_device, global_batch = config.batch.per_device_batch, config.batch.global_batch
    if config.run.mode == "benchmark_inference":
        remedy = f"give smaller batches than {max(config.run.inference_batches)} with --batch-size"
    elif per_device > 1:
        smaller = max(d for d in range(1, per_device // 2 + 1) if per_device % d == 0)
        remedy = (
            f"--batch-size {smaller} --optimizer-batch-size {global_batch} trains the same "
            "global batch in smaller parts"
        )
    else:
        remedy = "make --image-size smaller"
    return DeviceError(
        f"no memory left on {config.platform.device} with {per_device} images of "
        f"{config.data.image_size} px per device; {remedy}"
    )


def _exit_at_once(outcome: Outcome) -> NoReturn:
    """Exit without leaving the process group, which would wait for the lost rank."""
    if not report_outcome(outcome):
        outcome.show()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # The reader of the stream may have ended too.
            with suppress(OSError):
                stream.flush()
    os._exit(outcome.code)


def _run_joined(
    config: RunConfig,
    world: WorldInfo,
    accelerator: Accelerator,
    device: torch.device,
    found: DevicesFound,
    opens_page: bool,
) -> int:
    """Build the run, run its mode and record it; all ranks have joined."""
    activity = Activity()
    with (
        AnyRank() as any_rank,
        StopRequest(any_rank, activity) as stop,
        opened_run(config, world, accelerator, device, found, activity) as recorder,
    ):
        recorder.opens_page = opens_page
        return recorder.record_all(MODES[config.run.mode].records(recorder.run, stop))


@contextmanager
def opened_run(
    config: RunConfig,
    world: WorldInfo,
    accelerator: Accelerator,
    device: torch.device,
    found: DevicesFound,
    activity: Activity,
    shown: bool = True,
) -> Iterator[RunRecorder]:
    """Create or find the run's folder, and build the run; yield its recorder, which holds it.

    shown: the recorder writes to the console, too. Every rank calls this.

    Raises:
        UserError: anything the user can fix, before the first step.
    """
    # The agents of several machines count their restarts separately.
    restarts = agree_max(restart_count(os.environ))
    with ExitStack() as stack:
        point = stack.enter_context(_shared_resume_point(config, world, restarts))
        config = use_split_of_run(apply_resume_point(config, point, restarts))
        base = Run(
            config,
            world,
            accelerator,
            device,
            Path(point.workspace),
            point.run_epochs_from,
            activity=activity,
        )
        stack.callback(base.close)
        if restarts:
            activity.begin(f"restarting ({restarts} of at most {config.run.max_restarts})")
        if config.batch.fit_memory and config.run.mode not in _OTHER_BATCHES:
            base.config = fit_memory(base)
        recorder = RunRecorder(base, found, shown)
        stack.callback(recorder.close)
        recorder.run = MODES[config.run.mode].build(base)
        yield recorder


@contextmanager
def _shared_resume_point(
    config: RunConfig, world: WorldInfo, restarts: int
) -> Iterator[ResumePoint]:
    """Let rank 0 create and lock the run's folder; yield the resume point on every rank.

    Every rank raises rank 0's error.
    """
    with ExitStack() as stack:
        answer: dict[str, Any] = {}
        if world.rank == 0:
            try:
                given = config.run.workspace
                creates = given is None or not os.path.lexists(given)
                point = find_resume_point(config, restarts)
                workspace = Path(point.workspace)
                stack.enter_context(locked(workspace))
                if creates:
                    stack.callback(_remove_if_unused, workspace)
                answer = {"point": vars(point)}
            except UserError as error:
                answer = {"error": error.message}
        answer = json.loads(broadcast_text(json.dumps(answer)))
        if "error" in answer:
            raise WorkspaceError(answer["error"])
        yield ResumePoint(**answer["point"])


def _remove_if_unused(path: Path) -> None:
    """Remove a folder that this start created and wrote nothing into."""
    if path.is_dir() and {entry.name for entry in path.iterdir()} <= {".lock"}:
        (path / ".lock").unlink(missing_ok=True)
        path.rmdir()
