"""Data backends: `LoaderSpec` in, `Loader` out; and how many images may fail to decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from image_classification.config.schema import DataConfig
from image_classification.core.errors import DataError
from image_classification.core.registry import Registry
from image_classification.core.types import Batch, Decoding

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from image_classification.data.order import TrainOrder, ValOrder


@dataclass(frozen=True)
class LoaderSpec:
    """All a backend needs to open one split for one rank; plain values only.

    split: ``train`` or ``val``. device: a torch device string such as ``cuda:0``.
    accumulation: micro-batches per optimizer step (train only). rank and world_size are global.
    memory_format: ``nchw`` or ``nhwc``. classes: the model's class names, to which labels are
    mapped; None keeps the data set's.
    """

    data: DataConfig
    split: str
    per_device_batch: int
    accumulation: int
    num_classes: int
    rank: int
    world_size: int
    seed: int
    device: str
    memory_format: str
    classes: tuple[str, ...] | None = None

    def batch_order(self, num_images: int) -> TrainOrder | ValOrder:
        """Return the micro-batches of this split and rank.

        Raises:
            DataError: the train images do not fill one global batch.
        """
        # Imports NumPy, which listing the backends does not need.
        from image_classification.data.order import TrainOrder, ValOrder

        batch, rank, world = self.per_device_batch, self.rank, self.world_size
        if self.split == "train":
            return TrainOrder(num_images, batch, self.accumulation, rank, world, self.seed)
        return ValOrder(num_images, batch, rank, world)


class UndecodableImages(dict[str, str]):
    """Name -> reason of the train images that this rank could not decode so far.

    Other ranks' images may be noted too. error_budget: the fraction of ``num_images`` (the whole
    split, over all ranks) that may be undecodable.
    """

    def __init__(self, num_images: int, error_budget: float) -> None:
        super().__init__()
        self._num_images = num_images
        self._error_budget = error_budget

    def note(self, images: Mapping[str, str]) -> None:
        """Add ``images`` (name -> reason); known names keep their first reason.

        Raises:
            DataError: more distinct images than the budget allows.
        """
        for name, reason in images.items():
            self.setdefault(name, reason)
        if len(self) > self._error_budget * self._num_images:
            reason = next(reversed(self.values()))
            raise DataError(
                f"{len(self)} of {self._num_images} train images cannot be decoded, more than the "
                f"{self._error_budget:.3%} of data.error_budget; the last: {reason}; "
                f"list them with `python -m image_classification dataset check`, replace them, or "
                f"raise data.error_budget"
            )


class Loader(Protocol):
    """One split, opened for one rank.

    Train: every rank yields exactly ``steps_per_epoch * accumulation`` micro-batches of
    ``per_device_batch`` valid images. Which images form optimizer step s of epoch e depends only
    on (seed, e, s), not on rank or worker count. The last incomplete global batch is dropped.
    Val: every rank yields the same number of batches, in the order of `ValOrder`; padding has
    ``valid`` False, and over all ranks each image is valid exactly once.

    num_quarantined: train images left out by the quarantine list; not counted in num_images.
    notes: what the user should know about this split, such as the files that were skipped.
    undecodable: train images that could not be decoded. Each is replaced by the next image of its
    micro-batch that was decoded. class_names: ``classes`` if they are names, None if they are only
    numbers.
    """

    num_images: int
    num_quarantined: int
    notes: tuple[str, ...]
    undecodable: UndecodableImages
    classes: tuple[str, ...]
    class_names: tuple[str, ...] | None
    steps_per_epoch: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the micro-batches of ``epoch`` from optimizer step (val: batch) ``start_step`` on.

        Skipped steps decode nothing. Asking for another epoch ends the one before.

        Raises:
            ValueError: a closed loader, or a position outside the epoch. DataError, while
            iterating: a validation image, a whole micro-batch or more train images than
            ``data.error_budget`` cannot be decoded; or the data set was removed.
        """
        ...

    def sample_name(self, index: int) -> str:
        """Return the name of image ``index``, as in quarantine lists."""
        ...

    def read_sample(self, index: int) -> npt.NDArray[np.uint8] | None:
        """Return the encoded content of image ``index`` (``[bytes]``); None for synthetic images.

        Raises:
            DataError: it cannot be read.
        """
        ...

    def close(self) -> None:
        """Stop workers and release memory; may be called twice."""
        ...


def loader_notes(*loaders: Loader | None) -> list[str]:
    """Return the notes of ``loaders``, each once."""
    return list(dict.fromkeys(note for loader in loaders if loader for note in loader.notes))


BACKENDS: Registry[Callable[[LoaderSpec], Loader]] = Registry("data backend")
BACKENDS.add("dali-cpu", "image_classification.data.loaders.dali:DaliLoader")
BACKENDS.add("dali-gpu", "image_classification.data.loaders.dali:DaliLoader")
BACKENDS.add("pytorch", "image_classification.data.loaders.pytorch:TorchvisionLoader")
BACKENDS.add("synthetic", "image_classification.data.loaders.synthetic:SyntheticLoader")

_ON_HOST = Decoding(decoder="libjpeg-turbo", resampler="torchvision")
DECODING: dict[str, Decoding] = {
    "dali-cpu": _ON_HOST,  # DALI uses the same library, and torchvision's kernel resizes
    "dali-gpu": Decoding(decoder="nvjpeg", resampler="dali-gpu"),
    "pytorch": _ON_HOST,
    "synthetic": Decoding(decoder="none", resampler="none"),
}
"""What decodes and resizes the images of each backend."""


def open_loader(spec: LoaderSpec) -> Loader:
    """Open ``spec.data.backend``.

    Raises:
        ConfigError: no such backend, it is not installed, or sizes or ranges that contradict each
            other. DataError: the data set cannot be used.
    """
    return BACKENDS.get(spec.data.backend)(spec)
