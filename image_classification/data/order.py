"""Which image goes to which rank, step and micro-batch: only arithmetic on indices.

Everything derives from (seed, epoch, sample index), not from ranks or workers: one process with
accumulation 2 sees the same micro-batches as two processes with accumulation 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from image_classification.core.errors import DataError

PADDING = -1
"""Stands for "no image" in a batch of indices."""

# Spawn keys separate the streams of one seed. Without them, two entropy lists that differ only in
# trailing zeros would give the same stream.
_ORDER_STREAM = 0
_SAMPLE_STREAM = 1
_SYNTHETIC_STREAM = 2

Indices = npt.NDArray[np.int64]


def sample_order(seed: int, epoch: int, num_images: int) -> Indices:
    """Return the order of ``num_images`` train images in ``epoch``: ``[num_images]`` int64.

    Raw counter-based draws are sorted, so that the order is the same in every NumPy release;
    `numpy.random.Generator.permutation` does not guarantee that.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(_ORDER_STREAM, epoch))
    draws = np.random.Philox(sequence).random_raw(num_images)
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)


def sample_random(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random generator of one image in one epoch."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_SAMPLE_STREAM, epoch, index))
    return np.random.Generator(np.random.PCG64(sequence))


def synthetic_draws(seed: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    """Return ``count`` raw 64-bit draws for synthetic data: ``[count]`` uint64."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_SYNTHETIC_STREAM, stream))
    return np.asarray(np.random.Philox(sequence).random_raw(count), dtype=np.uint64)


@dataclass(frozen=True)
class TrainOrder:
    """The train micro-batches of one rank.

    Optimizer step s takes ``order[s*G : (s+1)*G]``, G the global batch. Within it, micro-batch a of
    rank r takes the b images from ``(a*W + r) * b`` on. The images after the last whole global
    batch are left out of the epoch.
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
        """Images per optimizer step, over all ranks."""
        return self.per_device_batch * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the same on every rank."""
        return self.num_images // self.global_batch

    def batches(self, epoch: int, start_step: int = 0) -> Indices:
        """Return the image indices of every micro-batch from ``start_step`` on.

        Shape ``[micro-batches, per_device_batch]``, int64, without padding.

        Raises:
            ValueError: a negative epoch, or ``start_step`` outside 0..steps_per_epoch.
        """
        _check_position(epoch, start_step, self.steps_per_epoch)
        order = sample_order(self.seed, epoch, self.num_images)
        steps = order[: self.steps_per_epoch * self.global_batch].reshape(
            self.steps_per_epoch, self.accumulation, self.world_size, self.per_device_batch
        )
        of_rank = steps[start_step:, :, self.rank, :]
        return np.ascontiguousarray(of_rank).reshape(-1, self.per_device_batch)


@dataclass(frozen=True)
class ValOrder:
    """The validation batches of one rank, in the order of the index.

    Batch k of rank r takes the b images from ``(k*W + r) * b`` on. The end is padded, so that every
    rank has the same number of batches and every image occurs once.
    """

    num_images: int
    per_device_batch: int
    rank: int
    world_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; the same on every rank."""
        return -(-self.num_images // (self.per_device_batch * self.world_size))

    def batches(self, epoch: int, start_step: int = 0) -> Indices:
        """Return the same as `TrainOrder.batches`, with `PADDING`; every epoch is the same."""
        _check_position(epoch, start_step, self.steps_per_epoch)
        shape = (self.steps_per_epoch, self.world_size, self.per_device_batch)
        padded = np.full(shape, PADDING, dtype=np.int64)
        padded.reshape(-1)[: self.num_images] = np.arange(self.num_images)
        return np.ascontiguousarray(padded[start_step:, self.rank, :])


def _check_position(epoch: int, start_step: int, steps_per_epoch: int) -> None:
    if epoch < 0 or not 0 <= start_step <= steps_per_epoch:
        raise ValueError(f"epoch {epoch}, step {start_step} of {steps_per_epoch}")
