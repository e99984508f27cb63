"""What every network has in common: features, classifier, class names and preprocessing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from image_classification.core.errors import ConfigError
from image_classification.models import ModelOptions, ModelSpec


class Classifier(nn.Module):
    """A network of features ``[N, num_features, h, w]`` and the dense layer ``fc`` behind them.

    Subclasses define `forward_features`, and set ``num_features``, ``avgpool`` and ``fc``.
    TorchScript and ``torch.export`` accept every model.

    Attributes:
        name: name of the architecture, one of `list_models`.
        num_classes: width of the classifier.
        num_features: channels of the features, before and after pooling.
        class_names: name of each class in label order; None if unknown.
        preprocessing: how the images are resized, cropped and normalized for it.
    """

    if TYPE_CHECKING:  # TorchScript does not understand annotations that are texts
        num_features: int
        avgpool: nn.Module
        fc: nn.Linear

    def __init__(self, spec: ModelSpec, options: ModelOptions) -> None:
        super().__init__()
        self.name = spec.name
        self.num_classes = options.num_classes
        self.class_names: list[str] | None = None
        self.preprocessing = spec.preprocessing

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Return features ``[N, num_features, h, w]`` of normalized ``images [N, 3, H, W]``."""
        raise NotImplementedError

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return logits ``[N, num_classes]``; pre_logits: pooled features ``[N, num_features]``."""
        pooled = torch.flatten(self.avgpool(features), 1)
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``[N, num_classes]`` for normalized ``images`` ``[N, 3, H, W]``."""
        return self.forward_head(self.forward_features(images))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a newly initialized one, on the same device.

        The class names become unknown. Make the optimizer after this: the parameters are new.

        Raises:
            ConfigError: ``num_classes`` is below 1.
        """
        if num_classes < 1:
            raise ConfigError(
                f"num_classes must be at least 1, not {num_classes}; for features without "
                "classifier use forward_features or forward_head(features, pre_logits=True)"
            )
        old = self.fc.weight
        self.fc = nn.Linear(self.num_features, num_classes, device=old.device, dtype=old.dtype)
        self.num_classes, self.class_names = num_classes, None
