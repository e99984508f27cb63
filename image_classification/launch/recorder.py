"""Which function drives which mode.

What a run ran on: versions and devices, for the report.

Rank 0's side of a run: its records on the screen and in files, its report at the end.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from rich.console import Console

from image_classification.config.explain import to_dict, to_yaml
from image_classification.core.errors import (
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_STOPPED,
    DivergedError,
    UserError,
)
from image_classification.core.files import write_atomically
from image_classification.core.terminal import LastingStdout
from image_classification.core.types import DevicesFound, Record
from image_classification.devices.accelerator import Accelerator
from image_classification.engine.checkpoints import files as checkpoint
from image_classification.engine.modes import MODES
from image_classification.engine.precision.apex import find_apex
from image_classification.engine.run_telemetry import RunTelemetry
from image_classification.engine.runs import Run
from image_classification.engine.stop import Stopped, StopRequest
from image_classification.launch.outcomes import Outcome, leave_outcome, remember
from image_classification.reporting.build_report import build_report
from image_classification.reporting.console.results import print_results
from image_classification.reporting.console.sink import open_console_sink
from image_classification.reporting.page.run_page import write_page
from image_classification.reporting.pictures.draw import Gallery, draw_run
from image_classification.reporting.report import RunReport, write_report
from image_classification.reporting.sinks import DLLoggerSink, JsonlSink, MultiSink, Sink
from image_classification.reporting.trackers.sink import open_trackers


def torch_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return torch, torchvision, dali, apex, cuda, cudnn, driver, devices; None where absent."""
    apex = find_apex()
    return {
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "dali": _dali_version(),
        "apex": None if apex is None else apex.describe(),
        **accelerator.environment(),
    }


def _dali_version() -> str | None:
    # Two wheels provide the one module, by CUDA version.
    return _version("nvidia-dali-cuda120") or _version("nvidia-dali-cuda130")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output() -> TextIO:
    # Started with stdout closed, Python has none at all.
    return cast(TextIO, LastingStdout()) if sys.stdout is not None else io.StringIO()


@dataclass
class Session:
    """One rank's drive through its mode, with rank 0's records and report."""

    run: Run
    found: DevicesFound
    console: Console = field(default_factory=lambda: Console(file=_output()))
    sink: Sink | None = None
    results: dict[str, Any] | None = None
    checkpoint: str | None = None
    epoch: int = 0

    def open_sinks(self) -> None:
        """Open every sink of rank 0 and write ``config.yml``."""
        config, folder = self.run.config, self.run.workspace
        append = config.run.resume is not None
        sinks: list[Sink] = []
        # First what the user named: where that fails, the folder is still unused.
        flat = {
            f"{section}.{key}": value
            for section, values in to_dict(config).items()
            for key, value in values.items()
        }
        if config.run.raport_file is not None:
            path = folder / config.run.raport_file
            sinks.append(DLLoggerSink(path, parameters=flat, append=append and path.exists()))
        try:
            trackers = open_trackers(
                config.run.trackers,
                workspace=folder,
                parameters=flat,
                resumed=append,
                warn=self._warn,
            )
        except UserError:
            MultiSink(sinks).close()
            raise
        write_atomically(folder / "config.yml", to_yaml(config))
        sinks += [
            open_console_sink(self.console, config),
            JsonlSink(folder / "metrics.jsonl", append=append),
            *trackers,  # last, so that they close first and can still warn
        ]
        self.sink = MultiSink(sinks)
        for message in config.warnings:
            self.sink.write(Record("warning", 0, 0, {"message": message}))

    def close_sinks(self) -> None:
        """Close them; may be called twice."""
        if self.sink is not None:
            self.sink.close()

    def _warn(self, message: str) -> None:
        if self.sink is not None:
            record = Record("warning", self.run.progress.step, self.epoch, {"message": message})
            self.sink.write(record)

    def drive(self, stop: StopRequest) -> int:
        """Run the mode to its end and report; return the exit code."""
        telemetry = RunTelemetry(self.run)
        try:
            return self._drive(stop, telemetry)
        finally:
            telemetry.stop()

    def _drive(self, stop: StopRequest, telemetry: RunTelemetry) -> int:
        code, message = EXIT_DONE, ""
        mode = MODES[self.run.config.run.mode]
        try:
            for record in mode.records(self.run, stop):
                self._take(record, telemetry)
        except Stopped as stopped:
            code = EXIT_STOPPED
            message = f"{stopped} came; {_how_to_go_on(self.run)}"
        except DivergedError as error:
            code, message = EXIT_DIVERGED, f"{error}; {_what_is_kept(self.run)}"
        except UserError as error:
            # It may be this rank's alone, so the others are not waited for.
            self._report(error.exit_code, error.message, telemetry, telemetry.report(alone=True))
            raise
        self._report(code, message, telemetry, telemetry.report())
        told = code == EXIT_DONE or leave_outcome(Outcome(self.run.world.rank, code, message))
        if not told and self.run.world.rank == 0:
            kind = "stopped: " if code == EXIT_STOPPED else "error: "
            print(f"{kind}{message}", file=sys.stderr)
        return code

    def _take(self, record: Record, telemetry: RunTelemetry) -> None:
        if record.kind == "end":
            self.results = record.values["results"]
            telemetry.stop()
        if record.kind == "start" and self.run.world.rank == 0 and "start_step" in record.values:
            remember("start_step", str(record.values["start_step"]))
        self.epoch = record.epoch
        if record.kind == "checkpoint":
            self.checkpoint = record.values.get("path", self.checkpoint)
        if self.run.world.rank != 0:
            return
        if self.sink is None:
            # Not before: a run that cannot begin leaves nothing behind.
            self.open_sinks()
        assert self.sink is not None
        if record.kind != "start":
            self._write_telemetry(telemetry, record.epoch)
        self.sink.write(record)

    def _write_telemetry(self, telemetry: RunTelemetry, epoch: int) -> None:
        assert self.sink is not None
        for record in telemetry.records(epoch):
            self.sink.write(record)

    def _report(
        self, code: int, message: str, telemetry: RunTelemetry, figures: dict[str, Any]
    ) -> None:
        if self.sink is None:
            return
        self._write_telemetry(telemetry, self.epoch)
        self.sink.close()
        run = self.run
        report = build_report(
            run.config,
            devices=self.found,
            environment=torch_environment(run.accelerator),
            results=self.results,
            telemetry=figures,
            exit_code=code,
            exit_message=message,
        )
        write_report(report, run.workspace)
        gallery = _drawn(run.workspace, report)
        write_page(report, run.workspace, gallery=gallery, provenance=run.config.provenance)
        print_results(self.console, report, folder=run.workspace, checkpoint=self.checkpoint)


def _drawn(folder: Path, report: RunReport) -> Gallery | None:
    """Draw the pictures; a fault in them must not hide how the run ended."""
    try:
        return draw_run(folder, report)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"warning: the pictures could not be drawn ({reason})", file=sys.stderr)
        return None


def _how_to_go_on(run: Run) -> str:
    control = run.config.run
    if control.mode != "convergence" or not control.save_checkpoints:
        return "nothing was to be saved"
    again = f"--workspace {run.workspace} --resume auto"
    return f"step {run.progress.step} is saved, start again with {again} to continue"


def _what_is_kept(run: Run) -> str:
    saved = checkpoint.listed(run.checkpoints)
    return f"{saved[-1].path} is kept" if saved else "no checkpoint had been saved"
