"""Images that could not be decoded while training: each named once, and too many end the run."""

from __future__ import annotations

from collections.abc import Mapping

from image_classification.core.errors import DataError


class Undecodable(dict[str, str]):
    """Name -> reason of every distinct image this rank has lost, and of what others told of.

    error_budget: share of ``num_images`` (the whole split, over all ranks) that may be lost.
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
