"""Softmax cross-entropy with label smoothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from image_classification.config.schema import LossConfig

LossFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(cfg: LossConfig) -> LossFn:
    """Return ``loss(logits, labels) -> mean loss``, a 0-d float32 tensor.

    logits: ``[N, C]``, any float dtype; the softmax is taken in float32. labels: ``[N]`` int64
    class indices, or ``[N, C]`` float soft targets after mixing, to which the smoothing applies
    as well: (1 - s) * target + s / C (arXiv:1512.00567, section 7).
    """
    smoothing = float(cfg.label_smoothing)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert logits.dim() == 2, logits.shape
        assert labels.shape in (logits.shape, logits.shape[:1]), (logits.shape, labels.shape)
        if labels.dim() == 2:
            labels = labels.float()
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)

    return loss
