"""Build loader specifications, open loaders and compare their batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch

from image_classification.config.schema import DataConfig
from image_classification.core.types import Batch
from image_classification.data.loaders import Loader, LoaderSpec, open_loader

SPEC = {
    "split": "train",
    "per_device_batch": 3,
    "accumulation": 1,
    "num_classes": 2,
    "rank": 0,
    "world_size": 1,
    "seed": 7,
    "device": "cpu",
    "memory_format": "nchw",
}
DATA = {"image_size": 24, "resize": 28, "workers": 0}
RAW_PIXELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
"""With these, normalized values are the pixels."""


def loader_spec(path: Path | str, **changes: object) -> LoaderSpec:
    """Return a small spec over ``path``; ``changes`` are fields of LoaderSpec or DataConfig."""
    of_spec = {field.name for field in fields(LoaderSpec)}
    spec = {**SPEC, **{k: v for k, v in changes.items() if k in of_spec}}
    data = {**DATA, "path": str(path), **{k: v for k, v in changes.items() if k not in of_spec}}
    return LoaderSpec(data=DataConfig(**data), **spec)  # type: ignore[arg-type]


@contextmanager
def opened(spec: LoaderSpec) -> Iterator[Loader]:
    """Open a loader and close it at the end."""
    loader = open_loader(spec)
    try:
        yield loader
    finally:
        loader.close()


def epoch_of(spec: LoaderSpec, epoch: int = 0, start_step: int = 0) -> list[Batch]:
    """Return the micro-batches of one epoch of a new loader."""
    with opened(spec) as loader:
        return list(loader.epoch(epoch, start_step))


def assert_same_batches(left: Sequence[Batch], right: Sequence[Batch]) -> None:
    """Fail unless both have the same images, labels and valid flags, bit for bit."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.valid, b.valid)
