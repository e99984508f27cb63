"""Softmax cross-entropy with label smoothing, and mixup and CutMix of a micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from image_classification.config.schema import LossConfig, MixingConfig

LossFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(cfg: LossConfig) -> LossFn:
    """Return ``loss(logits, labels) -> mean loss``, a 0-d float32 tensor.

    logits: ``[N, C]`` of any float dtype; the softmax is computed in float32. labels: ``[N]``
    int64 class indices, or ``[N, C]`` float soft targets after mixing. Both are smoothed to
    (1 - s) * target + s / C (arXiv:1512.00567, section 7).
    """

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert labels.shape in (logits.shape, logits.shape[:1]), (logits.shape, labels.shape)
        if labels.dim() == 2:
            labels = labels.float()
        return F.cross_entropy(logits.float(), labels, label_smoothing=cfg.label_smoothing)

    return loss


# Distinguishes these random numbers from other uses of the run's seed.
_STREAM = 0x6D6978


def soften(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return ``[N, num_classes]`` float32 one-hot rows of ``[N]`` int64 class indices."""
    assert labels.dim() == 1 and labels.dtype == torch.int64, (labels.shape, labels.dtype)
    one_hot = torch.zeros(labels.shape[0], num_classes, dtype=torch.float32, device=labels.device)
    return one_hot.scatter_(1, labels.unsqueeze(1), 1.0)


def mixup(
    images: torch.Tensor, targets: torch.Tensor, perm: torch.Tensor, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend images and targets with their partners: lam * x + (1 - lam) * x[perm].

    images: ``[N, 3, H, W]`` float. targets: ``[N, C]`` float. perm: ``[N]`` int64 on their
    device. Returns new tensors; images keep dtype and memory format. See arXiv:1710.09412.
    """
    return torch.lerp(images[perm], images, lam), torch.lerp(targets[perm], targets, lam)


def cut_box(
    height_px: int, width_px: int, lam: float, center_y: int, center_x: int
) -> tuple[int, int, int, int]:
    """Return CutMix's patch, clipped to the image: (top, bottom, left, right) in pixels.

    Before clipping, it has 1 - lam of the image's area and the image's aspect ratio.
    """
    ratio = math.sqrt(1.0 - lam)
    half_h, half_w = int(height_px * ratio) // 2, int(width_px * ratio) // 2
    return (
        max(center_y - half_h, 0),
        min(center_y + half_h, height_px),
        max(center_x - half_w, 0),
        min(center_x + half_w, width_px),
    )


def cutmix(
    images: torch.Tensor,
    targets: torch.Tensor,
    perm: torch.Tensor,
    box: tuple[int, int, int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste the partner's patch into each image; blend targets by the pasted area.

    Shapes as in `mixup`. box: (top, bottom, left, right) in pixels. See arXiv:1905.04899.
    """
    top, bottom, left, right = box
    height, width = images.shape[-2:]
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[perm, :, top:bottom, left:right]
    kept = 1.0 - (bottom - top) * (right - left) / (height * width)
    return mixed, torch.lerp(targets[perm], targets, kept)


class Mixer:
    """Mixes micro-batches; if both alphas are above 0, either method with equal probability.

    One lambda and one permutation per micro-batch, as in NVIDIA's code. They are drawn on the
    host and depend only on (seed, micro_batch_id, N), so that neither the rank nor resuming the
    run changes how images are mixed.
    """

    def __init__(self, cfg: MixingConfig, num_classes: int, seed: int) -> None:
        if cfg.mixup <= 0 and cfg.cutmix <= 0:
            raise ValueError("Mixer needs mixup or cutmix above 0")
        self.cfg = cfg
        self.num_classes = num_classes
        self.seed = seed

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, micro_batch_id: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mixed images and ``[N, num_classes]`` float32 soft targets.

        images: ``[N, 3, H, W]`` float. labels: ``[N]`` int64 on the same device. Both are left
        unchanged. micro_batch_id: counts the run's micro-batches over all ranks.
        """
        rng = np.random.default_rng((_STREAM, self.seed, micro_batch_id))
        # Always drawn, in this order, so that one setting does not change another's random numbers.
        pick_mixup = rng.random() < 0.5
        perm = torch.from_numpy(rng.permutation(images.shape[0])).to(
            images.device, non_blocking=True
        )
        targets = soften(labels, self.num_classes)
        if self.cfg.cutmix <= 0 or (self.cfg.mixup > 0 and pick_mixup):
            lam = float(rng.beta(self.cfg.mixup, self.cfg.mixup))
            return mixup(images, targets, perm, lam)
        height, width = int(images.shape[-2]), int(images.shape[-1])
        lam = float(rng.beta(self.cfg.cutmix, self.cfg.cutmix))
        box = cut_box(height, width, lam, int(rng.integers(height)), int(rng.integers(width)))
        return cutmix(images, targets, perm, box)
