"""A run's telemetry over all its nodes: sampled on each, put together at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from image_classification.core.types import Record
from image_classification.distributed.host_collectives import gather_text
from image_classification.distributed.lost_ranks import lost_peer
from image_classification.engine.build import Run
from image_classification.telemetry.rank_location import RankLocation, own_location
from image_classification.telemetry.sampler import Sampler, open_sensors

_WINDOWS = {
    "measured": "of the steps that the speed is of",
    "training": "of all steps, none after the warm-up",
    None: "not measured: no step was taken",
}


class RunTelemetry:
    """Samples from its making to `stop`; in the first rank of each node only.

    Every rank makes one, and every rank calls `report`, unless it alone has failed.
    """

    def __init__(self, run: Run) -> None:
        """Agree with all ranks who is where, and begin to sample."""
        names = run.accelerator.found().names
        name = names[run.world.local_rank % len(names)] if names else run.accelerator.kind
        texts = gather_text(own_location(run.device, name).to_text())
        locations = [RankLocation.from_text(text) for text in texts]
        own = locations[run.world.rank]
        self._run = run
        self._nodes = list(dict.fromkeys(location.node for location in locations))
        self._sampler: Sampler | None = None
        self._warned = False
        neighbours = [location for location in locations if location.node == own.node]
        if neighbours[0] == own:
            self._sampler = Sampler(open_sensors(run.accelerator.kind, neighbours), run.work)
            self._sampler.start()

    def stop(self) -> None:
        """End the sampling; may be called twice."""
        if self._sampler is not None:
            self._sampler.stop()

    def records(self, epoch: int) -> list[Record]:
        """Return ``telemetry`` records since the last call, and one ``warning`` at most."""
        if self._sampler is None:
            return []
        step = self._run.progress.step
        found = [Record("telemetry", step, epoch, v) for v in self._sampler.take_records()]
        trouble = None if self._warned else self._sampler.trouble()
        if trouble is not None:
            self._warned = True
            found.append(Record("warning", step, epoch, {"message": trouble}))
        return found

    def report(self, alone: bool = False) -> dict[str, Any]:
        """Stop and return ``telemetry`` of the report, whole on rank 0.

        alone: the other ranks may not come here, so they are not asked.
        """
        self.stop()
        own = None if self._sampler is None else self._own_figures()
        told = [own]
        if not alone and len(self._nodes) > 1:
            try:
                told = [json.loads(text) for text in gather_text(json.dumps(own))]
            except RuntimeError as error:
                # What this node measured is worth more than another's failure.
                if not lost_peer(error):
                    raise
        return assemble([figures for figures in told if figures], len(self._nodes))

    def _own_figures(self) -> dict[str, Any]:
        assert self._sampler is not None
        figures = self._sampler.figures()
        first = figures["devices"][0]
        if first["memory_peak_bytes"] is None:
            first["memory_peak_bytes"] = self._run.accelerator.peak_memory_bytes()
            first["source"] += "; memory: tensors of this rank alone"
        return figures


def assemble(nodes: Sequence[dict[str, Any]], num_nodes: int) -> dict[str, Any]:
    """Put the figures of the nodes (`Sampler.figures`) together, in the report's shape.

    Sums are None unless every device of every node has its part.
    """
    if not nodes:
        return {"devices": None, "energy_j": None, "images_per_joule": None, "source": None}
    devices = [device for node in nodes for device in node["devices"]]
    energies = [device["energy_j"] for device in devices]
    energy_j = None
    if len(nodes) == num_nodes and None not in energies:
        energy_j = sum(energies)
    window = nodes[0]["window"]
    sources = list(dict.fromkeys(device["source"] for device in devices))
    parts = [*sources, f"means and energy: {_WINDOWS[window]}"]
    if len(nodes) < num_nodes:
        parts.append(f"{num_nodes - len(nodes)} of {num_nodes} nodes did not answer")
    return {
        "devices": devices,
        "energy_j": energy_j,
        "images_per_joule": nodes[0]["images"] / energy_j if energy_j else None,
        "source": " | ".join(parts),
    }
