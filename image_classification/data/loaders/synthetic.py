"""Data backend ``synthetic``: finite, reproducible noise made on the device.

For benchmarks without data loading. Each split has `POOL_IMAGES` images of uniform noise; image i
of the data set is number ``i % POOL_IMAGES`` of them, and its label is drawn from (seed, split, i).
Order and sharding are the same as for real data.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from image_classification.core.types import Batch
from image_classification.data.loaders import LoaderSpec, UndecodableImages
from image_classification.data.loaders.device_prefetch import normalization, normalize
from image_classification.data.order import PADDING, synthetic_draws

POOL_IMAGES = 64
"""Distinct images; few, so that the pool stays small on the device."""

_LABEL_STREAMS = {"train": 0, "val": 1}
_IMAGE_STREAMS = {"train": 2, "val": 3}


class SyntheticLoader:
    """A `Loader` over noise; its classes are numbers, and ``spec.data.path`` is ignored.

    Raises:
        DataError: the train images do not fill one global batch.
    """

    def __init__(self, spec: LoaderSpec) -> None:
        is_train = spec.split == "train"
        data = spec.data
        self.num_images = data.synthetic_train_images if is_train else data.synthetic_val_images
        self.num_quarantined = 0
        self.notes: tuple[str, ...] = ()
        self.undecodable = UndecodableImages(self.num_images, data.error_budget)
        self.classes = tuple(f"{label:04d}" for label in range(spec.num_classes))
        self.class_names: tuple[str, ...] | None = None
        self._order = spec.batch_order(self.num_images)
        self.steps_per_epoch = self._order.steps_per_epoch
        self._device = torch.device(spec.device)
        draws = synthetic_draws(spec.seed, _LABEL_STREAMS[spec.split], self.num_images)
        labels = (draws % np.uint64(spec.num_classes)).astype(np.int64)
        self._labels = torch.from_numpy(labels).to(self._device)
        self._is_nhwc = spec.memory_format == "nhwc"
        self._pool: torch.Tensor | None = self._make_pool(spec)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """See `Loader.epoch`."""
        if self._pool is None:
            raise ValueError("the loader is closed")
        batches = self._order.batches(epoch, start_step)
        # Copied to the device once per epoch, not once per batch.
        return self._run(self._pool, torch.from_numpy(batches).to(self._device))

    def sample_name(self, index: int) -> str:
        """Return the number of image ``index`` in the pool: ``pool/12``."""
        return f"pool/{index % POOL_IMAGES}"

    def read_sample(self, index: int) -> None:
        """Return None: the images have no encoded content."""

    def close(self) -> None:
        """Release the images; may be called twice."""
        self._pool = None

    def _run(self, pool: torch.Tensor, batches: torch.Tensor) -> Iterator[Batch]:
        for indices in batches:
            valid = indices != PADDING
            known = indices.clamp(min=0)
            # Gathered along dimension 0: each batch is new memory that may be written to.
            images = pool.index_select(0, known % len(pool))
            labels = torch.where(valid, self._labels.index_select(0, known), 0)
            yield Batch(images.permute(0, 3, 1, 2) if self._is_nhwc else images, labels, valid)

    def _make_pool(self, spec: LoaderSpec) -> torch.Tensor:
        """Return the normalized images: ``[P, 3, S, S]``, or ``[P, S, S, 3]`` for nhwc."""
        side = spec.data.image_size
        count = min(POOL_IMAGES, self.num_images)
        num_bytes = count * 3 * side * side
        draws = synthetic_draws(spec.seed, _IMAGE_STREAMS[spec.split], -(-num_bytes // 8))
        pixels = draws.view(np.uint8)[:num_bytes].reshape(count, 3, side, side)
        images = torch.from_numpy(pixels.copy()).to(self._device)
        pool = normalize(images, *normalization(spec.data.mean, spec.data.std, self._device))
        return pool.permute(0, 2, 3, 1).contiguous() if self._is_nhwc else pool
