"""A network together with its preprocessing: what takes raw pixels and answers with logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.model import ModelConfig, Preprocessing
from worker import students


class Normalize(nn.Module):
    """(pixel * scale - mean) / std per channel, in float32; no trainable state, nothing in the state_dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.scale = preprocessing.scale
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() * self.scale - self.mean) / self.std


class Classifier(nn.Module):
    """Raw pixels (N, C, H, W) of any numeric dtype to logits (N, classes)."""

    def __init__(self, config: ModelConfig, network: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.preprocess = Normalize(config.preprocessing)
        self.network = network or students.build(config.architecture, config.input, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.preprocess(images))
        return logits
