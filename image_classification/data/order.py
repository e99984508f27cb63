"""Which image goes to which rank, step and micro-batch: pure arithmetic on indices.

Everything derives from (seed, epoch, sample index). Ranks and workers only decide who does the
work, so a run on one process with accumulation 2 sees the same micro-batches as a run on two
processes with accumulation 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError
from image_classification.data.loaders.protocol import LoaderSpec

PADDING = -1
"""Stands for "no image" in a batch of indices."""

# Spawn keys keep the streams of one seed apart; two lists of entropy that differ only in trailing
# zeros would give the same stream.
_ORDER_STREAM = 0
_SAMPLE_STREAM = 1
_SYNTHETIC_STREAM = 2

Indices = npt.NDArray[np.int64]


def sample_order(seed: int, epoch: int, num_images: int) -> Indices:
    """Return the order of ``num_images`` train images in ``epoch``: ``[num_images]`` int64.

    Sorting raw counter-based draws keeps the order the same in every NumPy release, which
    `numpy.random.Generator.permutation` does not promise.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(_ORDER_STREAM, epoch))
    draws = np.random.Philox(sequence).random_raw(num_images)
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)


def sample_random(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random stream of one image in one epoch, whoever decodes it."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_SAMPLE_STREAM, epoch, index))
    return np.random.Generator(np.random.PCG64(sequence))


def synthetic_draws(seed: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    """Return ``count`` raw 64-bit draws for made-up data: ``[count]`` uint64."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_SYNTHETIC_STREAM, stream))
    return np.asarray(np.random.Philox(sequence).random_raw(count), dtype=np.uint64)


class Plan(Protocol):
    """The micro-batches one rank yields of one split."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps (train) or batches (val) of an epoch; the same on every rank."""
        ...

    def batches(self, epoch: int, start_step: int = 0) -> Indices:
        """Return the image indices of every micro-batch from ``start_step`` on.

        Shape ``[micro-batches, per_device_batch]``, int64, `PADDING` where there is no image.

        Raises:
            ValueError: a negative epoch, or ``start_step`` outside 0..steps_per_epoch.
        """
        ...


@dataclass(frozen=True)
class TrainPlan:
    """Optimizer step s takes ``order[s*G : (s+1)*G]``, G the global batch.

    Within it, micro-batch a of rank r takes the b images from ``(a*W + r) * b`` on. The images
    after the last whole global batch are left out of the epoch.
    """

    num_images: int
    per_device_batch: int
    accumulation: int
    rank: int
    world_size: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a data set smaller than one global batch."""
        if self.num_images < self.global_batch:
            raise DataError(
                f"{self.num_images} train images do not fill one global batch of "
                f"{self.global_batch} ({self.per_device_batch} per device x {self.accumulation} "
                f"accumulation x {self.world_size} devices): set batch.global and "
                f"batch.per_device so that the global batch is at most {self.num_images}"
            )

    @property
    def global_batch(self) -> int:
        """Images an optimizer step over all ranks."""
        return self.per_device_batch * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self.num_images // self.global_batch

    def batches(self, epoch: int, start_step: int = 0) -> Indices:
        """See `Plan.batches`; no padding occurs."""
        _check_position(epoch, start_step, self.steps_per_epoch)
        order = sample_order(self.seed, epoch, self.num_images)
        steps = order[: self.steps_per_epoch * self.global_batch].reshape(
            self.steps_per_epoch, self.accumulation, self.world_size, self.per_device_batch
        )
        mine = steps[start_step:, :, self.rank, :]
        return np.ascontiguousarray(mine).reshape(-1, self.per_device_batch)


@dataclass(frozen=True)
class ValPlan:
    """Batch k of rank r takes the b images from ``(k*W + r) * b`` on, in the folder's order.

    The end is padded, so every rank has the same number of batches and every image occurs once.
    """

    num_images: int
    per_device_batch: int
    rank: int
    world_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches a pass."""
        return -(-self.num_images // (self.per_device_batch * self.world_size))

    def batches(self, epoch: int, start_step: int = 0) -> Indices:
        """See `Plan.batches`; every epoch is the same."""
        _check_position(epoch, start_step, self.steps_per_epoch)
        shape = (self.steps_per_epoch, self.world_size, self.per_device_batch)
        padded = np.full(shape, PADDING, dtype=np.int64)
        padded.reshape(-1)[: self.num_images] = np.arange(self.num_images)
        return np.ascontiguousarray(padded[start_step:, self.rank, :])


def make_plan(spec: LoaderSpec, num_images: int) -> Plan:
    """Return the plan of ``spec``'s split and rank over ``num_images`` images.

    Raises:
        DataError: the train images do not fill one global batch.
        ValueError: an unknown split, or a rank outside the world.
    """
    if not 0 <= spec.rank < spec.world_size:
        raise ValueError(f"rank {spec.rank} of a world of {spec.world_size}")
    if spec.split == "train":
        return TrainPlan(
            num_images=num_images,
            per_device_batch=spec.per_device_batch,
            accumulation=spec.accumulation,
            rank=spec.rank,
            world_size=spec.world_size,
            seed=spec.seed,
        )
    if spec.split == "val":
        return ValPlan(num_images, spec.per_device_batch, spec.rank, spec.world_size)
    raise ValueError(f"split {spec.split!r} is neither 'train' nor 'val'")


def _check_position(epoch: int, start_step: int, steps_per_epoch: int) -> None:
    if epoch < 0 or not 0 <= start_step <= steps_per_epoch:
        raise ValueError(f"epoch {epoch}, step {start_step} of {steps_per_epoch}")
