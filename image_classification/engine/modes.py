"""The modes of a run (``--mode``): how each is built, and which function drives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from image_classification.core.types import Record
from image_classification.engine.benchmark import benchmark_data, benchmark_inference
from image_classification.engine.build import (
    build_evaluation,
    build_loader_benchmark,
    build_training,
)
from image_classification.engine.evaluate import evaluate_run
from image_classification.engine.runs import Run
from image_classification.engine.stop import StopRequest
from image_classification.engine.train import train


@dataclass(frozen=True)
class Mode:
    """build: adds the mode's parts to a run; records: runs it and yields its records."""

    build: Callable[[Run], Run]
    records: Callable[[Any, StopRequest], Iterator[Record]]


MODES = {
    "convergence": Mode(build_training, train),
    "benchmark_training": Mode(build_training, train),
    "benchmark_training_short": Mode(build_training, train),
    "evaluate": Mode(build_evaluation, evaluate_run),
    "benchmark_inference": Mode(build_evaluation, benchmark_inference),
    "benchmark_data": Mode(build_loader_benchmark, benchmark_data),
}
