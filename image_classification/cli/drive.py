"""From a parsed command line to a finished run: the only place where CLI meets torch."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console

from image_classification.cli.parse import Request
from image_classification.cli.processes import Outcome, launch, leave_outcome
from image_classification.cli.terminal import LastingStdout
from image_classification.config.provenance import Override
from image_classification.config.schema import RunConfig
from image_classification.config.serialise import to_dict, to_yaml
from image_classification.core.errors import (
    EXIT_BUG,
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_STOPPED,
    ConfigError,
    DeviceError,
    DivergedError,
    UserError,
    WorkspaceError,
)
from image_classification.core.types import DevicesFound, Record, WorldInfo
from image_classification.data.demo import resolve_data_path
from image_classification.data.formats import check_classes
from image_classification.engine import checkpoint
from image_classification.engine.build import Run, build_run
from image_classification.engine.environment import device_telemetry, torch_environment
from image_classification.engine.files import explained, replace_file
from image_classification.engine.modes import DRIVERS
from image_classification.engine.stopping import Stopped, StopRequest
from image_classification.engine.workspace import held, prepare_workspace
from image_classification.hardware.accelerator import Accelerator, get_accelerator, out_of_memory
from image_classification.hardware.affinity import set_affinity
from image_classification.hardware.agreement import AnyRank, broadcast_text
from image_classification.hardware.world import detect_world, lost_peer, process_group
from image_classification.reporting.console import open_console_sink
from image_classification.reporting.dllogger import DLLoggerSink
from image_classification.reporting.plots import draw
from image_classification.reporting.published import bands
from image_classification.reporting.render import write_page
from image_classification.reporting.results_table import print_results
from image_classification.reporting.sinks import JsonlSink, MultiSink, Sink, read_metrics
from image_classification.reporting.summary import build_report, write_report


def drive(request: Request, script: str, argv: Sequence[str]) -> int:
    """Run what was asked for; return the exit code.

    Starts one process a device unless one is enough or torchrun, Slurm or MPI started this one.

    Raises:
        UserError: to be shown as one line.
    """
    world = detect_world(os.environ)
    if world is None and "NODE_RANK" in os.environ:
        request = _on_several_nodes(request)
    # The names first: a wrong one shows before any device is touched.
    asked = request.resolve()
    accelerator = get_accelerator(asked.platform.device)
    found = accelerator.found()
    # Any number of processes can share a CPU, so there it limits nothing.
    available = None if found.kind == "cpu" else found
    if world is not None:
        config = request.resolve(
            available=available, world_size=world.world_size, num_nodes=world.num_nodes
        )
    else:
        config = request.resolve(available=available)
    if world is None and config.world_size > 1:
        _check_before_launch(config, accelerator)
        return launch(config.platform, script, argv)
    return _run_rank(config, world or WorldInfo(), accelerator, found)


def _on_several_nodes(request: Request) -> Request:
    """Take the number of machines from NNODES, or the platform's, where NODE_RANK is set."""
    text = os.environ.get("NNODES", str(request.resolve().platform.num_nodes))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"NNODES={text} in the environment is not a number of machines")
    origin = "NNODES and NODE_RANK in the environment"
    nodes = Override("platform.num_nodes", int(text), origin)
    others = (o for o in request.overrides if o.key != nodes.key)
    return replace(request, overrides=(*others, nodes))


def _check_before_launch(config: RunConfig, accelerator: Accelerator) -> None:
    """Find in one process what would otherwise fail in each."""
    accelerator.check_precision(config.precision.name, config.precision.dtype)
    if config.data.backend != "synthetic":
        check_classes(resolve_data_path(config.data.path), "val", config.model.num_classes)


def _run_rank(
    config: RunConfig, world: WorldInfo, accelerator: Accelerator, found: DevicesFound
) -> int:
    try:
        try:
            return _run_in_world(config, world, accelerator, found)
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise _lighter(config) from error
            raise
    except UserError as error:
        if leave_outcome(Outcome(world.rank, error.exit_code, error.message)):
            return error.exit_code
        raise
    except RuntimeError as error:
        if world.world_size == 1 or not lost_peer(error):
            raise
        # Another rank failed first; its own error is the one to show.
        message = "lost contact with another rank; see its error"
        if not leave_outcome(Outcome(world.rank, EXIT_BUG, message)):
            print(f"error: [rank {world.rank}] {message}", file=sys.stderr)
        return EXIT_BUG


def _lighter(config: RunConfig) -> DeviceError:
    batch = config.batch
    if config.run.mode == "benchmark_inference":
        remedy = f"give smaller batches than {max(config.run.inference_batches)} with --batch-size"
    elif batch.per_device_batch > 1:
        smaller = max(
            d for d in range(1, batch.per_device_batch // 2 + 1) if batch.per_device_batch % d == 0
        )
        remedy = (
            f"--batch-size {smaller} --optimizer-batch-size {batch.global_batch} trains the same "
            "global batch in smaller parts"
        )
    else:
        remedy = "make --image-size smaller"
    return DeviceError(
        f"no memory left on {config.platform.device} with {batch.per_device_batch} images of "
        f"{config.data.image_size} px a device; {remedy}"
    )


def _run_in_world(
    config: RunConfig, world: WorldInfo, accelerator: Accelerator, found: DevicesFound
) -> int:
    set_affinity(config.platform.gpu_affinity, world.local_rank, world.local_world_size)
    device = accelerator.device(world.local_rank)
    with ExitStack() as stack:
        stack.enter_context(process_group(world, accelerator.process_group_backend, device=device))
        workspace = stack.enter_context(_shared_workspace(config, world))
        config = replace(config, run=replace(config.run, workspace=str(workspace)))
        any_rank = AnyRank()
        stack.callback(any_rank.finish)
        stop = stack.enter_context(StopRequest(any_rank))
        run = build_run(config, world, accelerator, device, workspace)
        stack.callback(run.close)
        session = _Session(run, found)
        stack.callback(session.close_sinks)
        return session.drive(stop)


@contextmanager
def _shared_workspace(config: RunConfig, world: WorldInfo) -> Iterator[Path]:
    """Let rank 0 make and hold the folder; every rank gets its path, or its error."""
    with ExitStack() as stack:
        answer = ""
        made: Path | None = None
        if world.rank == 0:
            try:
                given = config.run.workspace
                existed = given is not None and os.path.lexists(given)
                made = prepare_workspace(config)
                stack.enter_context(held(made))
                if not existed:
                    stack.callback(_remove_if_unused, made)
                answer = f"ok:{made}"
            except WorkspaceError as error:
                answer = f"error:{error.message}"
        kind, _, text = broadcast_text(answer).partition(":")
        if kind == "error":
            raise WorkspaceError(text)
        yield Path(text)


def _remove_if_unused(path: Path) -> None:
    """Take back a folder of ours in which nothing came to be written."""
    if path.is_dir() and {entry.name for entry in path.iterdir()} <= {".lock"}:
        (path / ".lock").unlink(missing_ok=True)
        path.rmdir()


def _output() -> TextIO:
    # Started with stdout closed, Python has none at all.
    return cast(TextIO, LastingStdout()) if sys.stdout is not None else io.StringIO()


@dataclass
class _Session:
    """One rank's drive through its mode, with rank 0's records and report."""

    run: Run
    found: DevicesFound
    console: Console = field(default_factory=lambda: Console(file=_output()))
    sink: Sink | None = None
    results: dict[str, Any] | None = None
    checkpoint: str | None = None

    def open_sinks(self) -> None:
        """Open every sink of rank 0 and write ``config.yml``."""
        config, folder = self.run.config, self.run.workspace
        append = config.run.resume is not None
        sinks: list[Sink] = []
        # First what the user named: where that fails, the folder is still unused.
        if config.run.raport_file is not None:
            flat = {
                f"{section}.{key}": value
                for section, values in to_dict(config).items()
                for key, value in values.items()
            }
            path = folder / config.run.raport_file
            sinks.append(DLLoggerSink(path, parameters=flat, append=append and path.exists()))
        with explained(folder / "config.yml", "write"):
            replace_file(folder / "config.yml", to_yaml(config).encode())
        sinks += [
            open_console_sink(self.console, config),
            JsonlSink(folder / "metrics.jsonl", append=append),
        ]
        self.sink = MultiSink(sinks)
        for message in config.warnings:
            self.sink.write(Record("warning", 0, 0, {"message": message}))

    def close_sinks(self) -> None:
        """Close them; may be called twice."""
        if self.sink is not None:
            self.sink.close()

    def drive(self, stop: StopRequest) -> int:
        """Run the mode to its end and report; return the exit code."""
        code, message = EXIT_DONE, ""
        driver = DRIVERS.get(self.run.config.run.mode)
        try:
            for record in driver(self.run, stop):
                self._take(record)
        except Stopped as stopped:
            code = EXIT_STOPPED
            message = f"{stopped} came; {_how_to_go_on(self.run)}"
        except DivergedError as error:
            code, message = EXIT_DIVERGED, f"{error}; {_what_is_kept(self.run)}"
        except UserError as error:
            self._report(error.exit_code, error.message)
            raise
        self._report(code, message)
        told = code == EXIT_DONE or leave_outcome(Outcome(self.run.world.rank, code, message))
        if not told and self.run.world.rank == 0:
            kind = "stopped: " if code == EXIT_STOPPED else "error: "
            print(f"{kind}{message}", file=sys.stderr)
        return code

    def _take(self, record: Record) -> None:
        if record.kind == "end":
            self.results = record.values["results"]
        if record.kind == "checkpoint":
            self.checkpoint = record.values.get("path", self.checkpoint)
        if self.run.world.rank != 0:
            return
        if self.sink is None:
            # Not before: a run that cannot begin leaves nothing behind.
            self.open_sinks()
        assert self.sink is not None
        self.sink.write(record)

    def _report(self, code: int, message: str) -> None:
        if self.sink is None:
            return
        self.sink.close()
        run = self.run
        report = build_report(
            run.config,
            devices=self.found,
            environment=torch_environment(run.accelerator),
            results=self.results,
            telemetry=device_telemetry(run),
            exit_code=code,
            exit_message=message,
        )
        write_report(report, run.workspace)
        records = read_metrics(run.workspace / "metrics.jsonl")
        draw(records, run.workspace / "plots", bands(run.config, report.published))
        write_page(report, run.workspace, provenance=run.config.provenance)
        print_results(self.console, report, folder=run.workspace, checkpoint=self.checkpoint)


def _how_to_go_on(run: Run) -> str:
    control = run.config.run
    if control.mode != "convergence" or not control.save_checkpoints:
        return "nothing was to be saved"
    return f"step {run.progress.step} is saved, start again with --resume auto to continue"


def _what_is_kept(run: Run) -> str:
    saved = checkpoint.listed(run.checkpoints)
    return f"{saved[-1].path} is kept" if saved else "no checkpoint had been saved"
