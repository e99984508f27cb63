"""Telemetry of a run: sampled once on each node, combined over the nodes at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from image_classification.core.types import Record
from image_classification.distributed.host_collectives import gather_text
from image_classification.distributed.lost_ranks import lost_peer
from image_classification.engine.runs import Run
from image_classification.telemetry.sampler import Sampler
from image_classification.telemetry.sensors import RankLocation, open_sensors, own_location

_WINDOWS = {
    "measured": "of the steps that the speed is of",
    "training": "of all steps, none after the warm-up",
    None: "not measured: no step was taken",
}


class RunTelemetry:
    """Samples from construction to `stop`, in the first rank of each node only.

    Every rank constructs one, and every rank calls `report` unless it alone has failed.
    """

    def __init__(self, run: Run) -> None:
        """Exchange rank locations with all ranks and start sampling."""
        names = run.accelerator.found().names
        name = names[run.world.local_rank % len(names)] if names else run.accelerator.kind
        texts = gather_text(own_location(run.device, name).to_text())
        locations = [RankLocation.from_text(text) for text in texts]
        own = locations[run.world.rank]
        self._run = run
        self._num_nodes = len({location.node for location in locations})
        self._sampler: Sampler | None = None
        self._warned = False
        on_this_node = [location for location in locations if location.node == own.node]
        if on_this_node[0] == own:
            self._sampler = Sampler(open_sensors(run.accelerator.kind, on_this_node), run.work)
            self._sampler.start()

    @property
    def samples(self) -> bool:
        """Whether this rank samples its node."""
        return self._sampler is not None

    def stop(self) -> None:
        """Stop sampling; may be called twice."""
        if self._sampler is not None:
            self._sampler.stop()

    def records(self, epoch: int) -> list[Record]:
        """Return the ``telemetry`` records since the last call, and at most one ``warning``."""
        if self._sampler is None:
            return []
        found = [self._run.record("telemetry", epoch, **v) for v in self._sampler.take_records()]
        trouble = None if self._warned else self._sampler.trouble()
        if trouble is not None:
            self._warned = True
            found.append(self._run.record("warning", epoch, message=trouble))
        return found

    def report(self, alone: bool = False) -> dict[str, Any]:
        """Stop and return ``telemetry`` of the report, complete on rank 0.

        alone: do not wait for the other ranks, as they may not call this.
        """
        self.stop()
        own = self._own_figures(self._sampler) if self._sampler is not None else None
        gathered = [own]
        if not alone and self._num_nodes > 1:
            try:
                gathered = [json.loads(text) for text in gather_text(json.dumps(own))]
            except RuntimeError as error:
                # A lost rank must not cost this node's own figures.
                if not lost_peer(error):
                    raise
        return combine_nodes([figures for figures in gathered if figures], self._num_nodes)

    def _own_figures(self, sampler: Sampler) -> dict[str, Any]:
        figures = sampler.figures()
        first = figures["devices"][0]
        if first["memory_peak_bytes"] is None:
            first["memory_peak_bytes"] = self._run.accelerator.peak_memory_bytes()
            first["source"] += "; memory: tensors of this rank alone"
        return figures


def combine_nodes(nodes: Sequence[dict[str, Any]], num_nodes: int) -> dict[str, Any]:
    """Combine the figures of the nodes (`Sampler.figures`) in the report's format.

    Sums are None unless every device of every node has its part.
    """
    if not nodes:
        return {"devices": None, "energy_j": None, "images_per_joule": None, "source": None}
    devices = [device for node in nodes for device in node["devices"]]
    energies = [device["energy_j"] for device in devices]
    energy_j = None
    if len(nodes) == num_nodes and None not in energies:
        energy_j = sum(energies)
    sources = list(dict.fromkeys(device["source"] for device in devices))
    parts = [*sources, f"means and energy: {_WINDOWS[nodes[0]['window']]}"]
    if len(nodes) < num_nodes:
        parts.append(f"{num_nodes - len(nodes)} of {num_nodes} nodes did not answer")
    return {
        "devices": devices,
        "energy_j": energy_j,
        "images_per_joule": nodes[0]["images"] / energy_j if energy_j else None,
        "source": " | ".join(parts),
    }
