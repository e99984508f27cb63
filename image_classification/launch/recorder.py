"""Record a run: write rank 0's records to the screen and to files, the telemetry and the report."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TextIO, cast

import torch
from rich.console import Console

from image_classification.config.keys import to_dict, to_yaml
from image_classification.core.errors import (
    EXIT_DONE,
    DivergedError,
    UserError,
)
from image_classification.core.files import write_atomically
from image_classification.core.program import LastingStdout, open_page
from image_classification.core.types import DevicesFound, Record
from image_classification.devices.accelerator import Accelerator
from image_classification.distributed.collectives import gather_text
from image_classification.distributed.world import is_lost_peer
from image_classification.engine.checkpoints.files import describe_newest, listed
from image_classification.engine.precision import find_apex
from image_classification.engine.runs import Run
from image_classification.engine.stop import Stopped
from image_classification.launch.data_split import save_split
from image_classification.launch.outcomes import Outcome, keep_for_restart, report_outcome
from image_classification.reporting.build_report import build_report
from image_classification.reporting.console import open_console_sink
from image_classification.reporting.page import write_page
from image_classification.reporting.pictures.draw import draw_run
from image_classification.reporting.report import write_report
from image_classification.reporting.results import print_results
from image_classification.reporting.sinks import DLLoggerSink, JsonlSink, MultiSink, Sink
from image_classification.reporting.trackers.sink import open_trackers
from image_classification.telemetry.sampler import Sampler
from image_classification.telemetry.sensors import RankLocation, open_sensors, own_location


class RunTelemetry:
    """Samples from construction to `stop`, in the first rank of each node only.

    Every rank constructs one, and every rank calls `report` unless it alone has failed.
    sampler: None on the other ranks.
    """

    def __init__(self, run: Run) -> None:
        names = run.accelerator.found().names
        name = names[run.world.local_rank % len(names)] if names else run.accelerator.kind
        texts = gather_text(own_location(run.device, name).to_text())
        locations = [RankLocation.from_text(text) for text in texts]
        own = locations[run.world.rank]
        self.sampler: Sampler | None = None
        self._run = run
        self._num_nodes = len({location.node for location in locations})
        self._warned = False
        on_this_node = [location for location in locations if location.node == own.node]
        if on_this_node[0] == own:
            self.sampler = Sampler(open_sensors(run.accelerator.kind, on_this_node), run.work)
            self.sampler.start()

    def stop(self) -> None:
        """Stop sampling; may be called twice."""
        if self.sampler is not None:
            self.sampler.stop()

    def records(self, epoch: int) -> list[Record]:
        """Return the ``telemetry`` records since the last call, and at most one ``warning``."""
        if self.sampler is None:
            return []
        found = [self._run.record("telemetry", epoch, **v) for v in self.sampler.take_records()]
        trouble = None if self._warned else self.sampler.trouble()
        if trouble is not None:
            self._warned = True
            found.append(self._run.record("warning", epoch, message=trouble))
        return found

    def report(self, alone: bool = False) -> dict[str, Any]:
        """Stop and return ``telemetry`` of the report, complete on rank 0.

        alone: do not wait for the other ranks, as they may not call this.
        """
        self.stop()
        own = None
        if self.sampler is not None:
            own = self.sampler.figures()
            first = own["devices"][0]
            if first["memory_peak_bytes"] is None:
                first["memory_peak_bytes"] = self._run.accelerator.peak_memory_bytes()
                first["source"] += "; memory: tensors of this rank alone"
        gathered = [own]
        if not alone and self._num_nodes > 1:
            try:
                gathered = [json.loads(text) for text in gather_text(json.dumps(own))]
            except RuntimeError as error:
                # Report this node's figures even if a rank is lost.
                if not is_lost_peer(error):
                    raise
        return combine_nodes([figures for figures in gathered if figures], self._num_nodes)


_WINDOWS = {
    "measured": "over the steps that the speed is computed from",
    "training": "over all steps, as there is none after the warm-up",
    None: "not measured: no step was taken",
}


def combine_nodes(nodes: Sequence[dict[str, Any]], num_nodes: int) -> dict[str, Any]:
    """Combine the figures of the nodes (`Sampler.figures`) in the report's format.

    Sums are None unless every device of every node has a value.
    """
    if not nodes:
        return {"devices": None, "energy_j": None, "images_per_joule": None, "source": None}
    devices = [device for node in nodes for device in node["devices"]]
    energies = [device["energy_j"] for device in devices]
    complete = len(nodes) == num_nodes and None not in energies
    energy_j = sum(energies) if complete else None
    sources = list(dict.fromkeys(device["source"] for device in devices))
    sources.append(f"means and energy: {_WINDOWS[nodes[0]['window']]}")
    if len(nodes) < num_nodes:
        sources.append(f"{num_nodes - len(nodes)} of {num_nodes} nodes did not answer")
    return {
        "devices": devices,
        "energy_j": energy_j,
        "images_per_joule": nodes[0]["images"] / energy_j if energy_j else None,
        "source": " | ".join(sources),
    }


class RunRecorder:
    """Runs a mode's records to their end; on rank 0 writes them to the sinks, and the report.

    On rank 0 of a terminal the live view starts here. found: the devices of this node. Every rank
    has a recorder, as the telemetry is gathered. run: may be replaced by one with a mode's parts
    before `record_all`. shown: write to the console, too. opens_page: show the page of the report
    in the browser.
    """

    opens_page = False

    def __init__(self, run: Run, found: DevicesFound, shown: bool = True) -> None:
        self.run = run
        self._found = found
        # sys.stdout is None if Python was started with stdout closed.
        stdout = LastingStdout() if shown and sys.stdout is not None else io.StringIO()
        self._console = Console(file=cast(TextIO, stdout))
        self._screen: Sink | None = None
        if shown and run.world.rank == 0:
            self._screen = open_console_sink(self._console, run.config, run.activity)
        self._sink: MultiSink | None = None
        self._results: dict[str, Any] | None = None
        self._epoch = 0
        self._warnings: list[str] = []

    def record_all(self, records: Iterator[Record]) -> int:
        """Consume ``records``, write the report and return the exit code.

        A UserError of ``records`` is raised after the report was written.
        """
        try:
            for _ in self.recorded(records):
                pass
        except (Stopped, DivergedError) as ended:
            outcome = Outcome(self.run.world.rank, ended.exit_code, str(ended))
            if not report_outcome(outcome) and outcome.rank == 0:
                outcome.show()
            return ended.exit_code
        return EXIT_DONE

    def recorded(self, records: Iterator[Record]) -> Iterator[Record]:
        """Yield each of ``records`` once it is written; at their end, write the report.

        Raises:
            Stopped, DivergedError: of ``records``, with how to continue, after the report.
            UserError: of ``records``, after the report.
        """
        telemetry = RunTelemetry(self.run)
        ended: Stopped | DivergedError | None = None
        try:
            try:
                for record in records:
                    self._take(record, telemetry)
                    yield record
            except Stopped as stopped:
                ended = Stopped(f"{stopped} received; {self._how_to_continue()}")
            except DivergedError as error:
                kept = describe_newest(self.run.checkpoints)
                ended = DivergedError(f"{error}; {kept}", error.step)
            except UserError as error:
                # It may be this rank's alone, so the others are not waited for.
                self._report(error.exit_code, error.message, telemetry, alone=True)
                raise
            code, message = (EXIT_DONE, "") if ended is None else (ended.exit_code, str(ended))
            self._report(code, message, telemetry)
        finally:
            telemetry.stop()
        if ended is not None:
            raise ended

    def close(self) -> None:
        """Close the sinks and end the live view; may be called twice."""
        if self._sink is not None:
            self._sink.close()
        if self._screen is not None:
            self._screen.close()

    def _take(self, record: Record, telemetry: RunTelemetry) -> None:
        self._epoch = record.epoch
        if record.kind == "end":
            self._results = record.values["results"]
            telemetry.stop()
        if self.run.world.rank != 0:
            return
        if record.kind == "start" and "start_step" in record.values:
            keep_for_restart("start_step", str(record.values["start_step"]))
        if self._sink is None:
            # Not before the first record: a run that cannot begin leaves nothing behind.
            self._open_sinks()
        if record.kind != "start":
            self._write_telemetry(telemetry)
        self._write(record)

    def _open_sinks(self) -> None:
        config, folder = self.run.config, self.run.workspace
        append = config.run.resume is not None
        parameters = {
            f"{section}.{key}": value
            for section, values in to_dict(config).items()
            for key, value in values.items()
        }
        sinks: list[Sink] = []
        trackers: Sequence[Sink] = ()
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
                warn=lambda message: self._write(
                    self.run.record("warning", self._epoch, message=message)
                ),
            )
            write_atomically(folder / "config.yml", to_yaml(config))
            if config.run.mode == "convergence":
                save_split(config.data, folder)
            sinks.append(JsonlSink(folder / "metrics.jsonl", append=append))
        except UserError:
            MultiSink([*sinks, *trackers]).close()
            raise
        # The trackers are last, so that they close first and can still warn.
        self._sink = MultiSink([*sinks, *trackers])
        for message in config.warnings:
            self._write(Record("warning", 0, 0, {"message": message}))

    def _write(self, record: Record) -> None:
        if record.kind == "warning":
            self._warnings.append(str(record.values["message"]))
        if self._sink is None:
            return
        if self._screen is not None:
            self._screen.write(record)
        self._sink.write(record)

    def _write_telemetry(self, telemetry: RunTelemetry) -> None:
        for record in telemetry.records(self._epoch):
            self._write(record)

    def _report(
        self, code: int, message: str, telemetry: RunTelemetry, alone: bool = False
    ) -> None:
        """Write the report; every rank calls this unless it is ``alone``."""
        figures = telemetry.report(alone)
        if self._sink is None:
            return
        run = self.run
        run.activity.begin("writing the report")
        run.activity.ended, run.activity.quiet = True, False
        self._write_telemetry(telemetry)
        self._sink.close()
        report = build_report(
            run.config,
            devices=self._found,
            environment=torch_environment(run.accelerator),
            results=self._results,
            telemetry=figures,
            exit_code=code,
            exit_message=message,
            warnings=self._warnings,
            classes=run.classes,
        )
        write_report(report, run.workspace)
        gallery = None
        try:
            gallery = draw_run(run.workspace, report)
        except UserError:
            raise
        except Exception as error:
            # An error in the pictures must not hide how the run ended.
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"warning: the pictures could not be drawn ({reason})", file=sys.stderr)
        page = write_page(report, run.workspace, gallery=gallery, provenance=run.config.provenance)
        self.close()
        print_results(
            self._console, report, folder=run.workspace, checkpoint=self._newest_checkpoint()
        )
        if self.opens_page:
            self._console.print(open_page(page), soft_wrap=True, markup=False, highlight=False)

    def _newest_checkpoint(self) -> str | None:
        if self.run.config.run.mode == "convergence":
            with suppress(OSError):
                return next((str(s.path) for s in reversed(listed(self.run.checkpoints))), None)
        return None

    def _how_to_continue(self) -> str:
        run, control = self.run, self.run.config.run
        if control.mode != "convergence" or not control.save_checkpoints:
            return "this run saves no checkpoints"
        options = f"--workspace {run.workspace} --resume auto"
        return f"step {run.progress.step} is saved, start again with {options} to continue"


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
