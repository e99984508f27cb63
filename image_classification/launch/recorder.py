"""Rank 0's records of a run: on the screen and in files, with the report at the end."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from rich.console import Console

from image_classification.config.keys import to_dict, to_yaml
from image_classification.core.errors import (
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_STOPPED,
    DivergedError,
    UserError,
)
from image_classification.core.files import write_atomically
from image_classification.core.program import LastingStdout
from image_classification.core.types import DevicesFound, Record
from image_classification.devices.accelerator import Accelerator
from image_classification.engine.checkpoints import files
from image_classification.engine.precision.apex import find_apex
from image_classification.engine.run_telemetry import RunTelemetry
from image_classification.engine.runs import Run
from image_classification.engine.stop import Stopped
from image_classification.launch.outcomes import Outcome, keep_for_restart, report_outcome
from image_classification.reporting.build_report import build_report
from image_classification.reporting.console.results import print_results
from image_classification.reporting.console.sink import open_console_sink
from image_classification.reporting.page.run_page import write_page
from image_classification.reporting.pictures.draw import Gallery, draw_run
from image_classification.reporting.report import RunReport, write_report
from image_classification.reporting.sinks import DLLoggerSink, JsonlSink, MultiSink, Sink
from image_classification.reporting.trackers.sink import open_trackers


class RunRecorder:
    """Runs a mode's records to their end; on rank 0 writes them to the sinks, and the report.

    found: the devices of this node. Every rank has a recorder, as the telemetry is gathered.
    """

    def __init__(self, run: Run, found: DevicesFound) -> None:
        self._run = run
        self._found = found
        # Started with stdout closed, Python has none at all.
        stdout = LastingStdout() if sys.stdout is not None else io.StringIO()
        self._console = Console(file=cast(TextIO, stdout))
        self._sink = MultiSink([])
        self._sinks_opened = False
        self._results: dict[str, Any] | None = None
        self._checkpoint: str | None = None
        self._epoch = 0

    def record_all(self, records: Iterator[Record]) -> int:
        """Consume ``records``, write the report and return the exit code.

        Raises:
            UserError: after the report was written.
        """
        telemetry = RunTelemetry(self._run)
        try:
            code, message = EXIT_DONE, ""
            try:
                for record in records:
                    self._take(record, telemetry)
            except Stopped as stopped:
                code = EXIT_STOPPED
                message = f"{stopped} came; {self._how_to_continue()}"
            except DivergedError as error:
                code, message = EXIT_DIVERGED, f"{error}; {self._kept_checkpoint()}"
            except UserError as error:
                # It may be this rank's alone, so the others are not waited for.
                self._report(error.exit_code, error.message, telemetry, alone=True)
                raise
            self._report(code, message, telemetry)
        finally:
            telemetry.stop()
        if code != EXIT_DONE:
            rank = self._run.world.rank
            if not report_outcome(Outcome(rank, code, message)) and rank == 0:
                kind = "stopped: " if code == EXIT_STOPPED else "error: "
                print(f"{kind}{message}", file=sys.stderr)
        return code

    def close(self) -> None:
        """Close the sinks; may be called twice."""
        self._sink.close()

    def _take(self, record: Record, telemetry: RunTelemetry) -> None:
        self._epoch = record.epoch
        if record.kind == "end":
            self._results = record.values["results"]
            telemetry.stop()
        if record.kind == "checkpoint":
            self._checkpoint = record.values["path"]
        if self._run.world.rank != 0:
            return
        if record.kind == "start" and "start_step" in record.values:
            keep_for_restart("start_step", str(record.values["start_step"]))
        if not self._sinks_opened:
            # Not before the first record: a run that cannot begin leaves nothing behind.
            self._open_sinks()
        if record.kind != "start":
            self._write_telemetry(telemetry)
        self._sink.write(record)

    def _open_sinks(self) -> None:
        """Open every sink and write ``config.yml``."""
        config, folder = self._run.config, self._run.workspace
        append = config.run.resume is not None
        parameters = {
            f"{section}.{key}": value
            for section, values in to_dict(config).items()
            for key, value in values.items()
        }
        sinks: list[Sink] = []
        # First the files that the user named: if one fails, the folder is still unused.
        if config.run.raport_file is not None:
            path = folder / config.run.raport_file
            appends = append and path.exists()
            sinks.append(DLLoggerSink(path, parameters=parameters, append=appends))
        try:
            trackers = open_trackers(
                config.run.trackers,
                workspace=folder,
                parameters=parameters,
                resumed=append,
                warn=self._warn,
            )
        except UserError:
            MultiSink(sinks).close()
            raise
        write_atomically(folder / "config.yml", to_yaml(config))
        sinks += [
            open_console_sink(self._console, config),
            JsonlSink(folder / "metrics.jsonl", append=append),
            *trackers,  # last, so that they close first and can still warn
        ]
        self._sink = MultiSink(sinks)
        self._sinks_opened = True
        for message in config.warnings:
            self._sink.write(Record("warning", 0, 0, {"message": message}))

    def _warn(self, message: str) -> None:
        self._sink.write(self._run.record("warning", self._epoch, message=message))

    def _write_telemetry(self, telemetry: RunTelemetry) -> None:
        for record in telemetry.records(self._epoch):
            self._sink.write(record)

    def _report(
        self, code: int, message: str, telemetry: RunTelemetry, alone: bool = False
    ) -> None:
        """Write the report; every rank calls this unless it is ``alone``."""
        figures = telemetry.report(alone)
        if not self._sinks_opened:
            return
        self._write_telemetry(telemetry)
        self._sink.close()
        run = self._run
        report = build_report(
            run.config,
            devices=self._found,
            environment=torch_environment(run.accelerator),
            results=self._results,
            telemetry=figures,
            exit_code=code,
            exit_message=message,
        )
        write_report(report, run.workspace)
        gallery = _draw(run.workspace, report)
        write_page(report, run.workspace, gallery=gallery, provenance=run.config.provenance)
        print_results(self._console, report, folder=run.workspace, checkpoint=self._checkpoint)

    def _how_to_continue(self) -> str:
        run, control = self._run, self._run.config.run
        if control.mode != "convergence" or not control.save_checkpoints:
            return "nothing was to be saved"
        options = f"--workspace {run.workspace} --resume auto"
        return f"step {run.progress.step} is saved, start again with {options} to continue"

    def _kept_checkpoint(self) -> str:
        saved = files.listed(self._run.checkpoints)
        return f"{saved[-1].path} is kept" if saved else "no checkpoint had been saved"


def _draw(folder: Path, report: RunReport) -> Gallery | None:
    """Draw the pictures; an error in them must not hide how the run ended."""
    try:
        return draw_run(folder, report)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"warning: the pictures could not be drawn ({reason})", file=sys.stderr)
        return None


def torch_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return torch, torchvision, dali, apex, cuda, cudnn, driver, devices; None where absent."""
    apex = find_apex()
    # Two wheels provide DALI, by CUDA version.
    dali = _version("nvidia-dali-cuda120") or _version("nvidia-dali-cuda130")
    return {
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "dali": dali,
        "apex": None if apex is None else apex.describe(),
        **accelerator.environment(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
