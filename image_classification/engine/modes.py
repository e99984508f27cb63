"""Which function drives which mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from image_classification.core.registry import Registry
from image_classification.core.types import Record
from image_classification.engine.benchmark import (
    benchmark_data,
    benchmark_inference,
    evaluate_run,
)
from image_classification.engine.build import Run
from image_classification.engine.stopping import StopRequest
from image_classification.engine.train import train

Driver = Callable[[Run, StopRequest], Iterator[Record]]

DRIVERS: Registry[Driver] = Registry("mode")
DRIVERS.add("convergence", train)
DRIVERS.add("benchmark_training", train)
DRIVERS.add("benchmark_training_short", train)
DRIVERS.add("benchmark_inference", benchmark_inference)
DRIVERS.add("benchmark_data", benchmark_data)
DRIVERS.add("evaluate", evaluate_run)
