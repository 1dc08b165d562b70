"""A network together with its preprocessing: what takes raw samples and answers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing, TableInput, TargetScaling, TextInput
from worker import students
from worker.outputs import HiddenStates
from worker.students import hugging_face

INPUT_KEYS: dict[type, str] = {ImageInput: "images", TableInput: "table", TextInput: "tokens"}
"""What a model reads of a batch unless it is told otherwise, as one with a tokenizer of its own is."""


class Resize(nn.Module):
    """Images of another size are resampled (antialiased) in float32, and their middle is cut out where the
    preprocessing says so; those of the network's own size pass."""

    def __init__(self, image: ImageInput, preprocessing: Preprocessing | None) -> None:
        super().__init__()
        self.size = (image.height, image.width)
        told = preprocessing or Preprocessing(mean=[0.0], std=[1.0])
        self.mode, self.crop, self.highest = told.interpolation, told.crop, 1.0 / told.scale

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == self.size:
            return images
        size = self.size if self.crop is None else self._covering(images.shape[-2], images.shape[-1], self.crop)
        found = F.interpolate(images.float(), size, mode=self.mode, antialias=True, align_corners=False)
        if self.mode == "bicubic":  # which overshoots, where readers of pictures cut off
            found = found.clamp(0.0, self.highest)
        top, left = (round((whole - side) / 2) for whole, side in zip(size, self.size, strict=True))
        return found[..., top : top + self.size[0], left : left + self.size[1]]

    def _covering(self, height: int, width: int, crop: float) -> tuple[int, int]:
        """The size in proportion to `height` and `width` that covers the network's, divided by `crop`."""
        wanted = [int(side / crop) for side in self.size]
        if wanted[0] / height >= wanted[1] / width:
            return wanted[0], max(int(wanted[0] * width / height), wanted[1])
        return max(int(wanted[1] * height / width), wanted[0]), wanted[1]


class Normalize(nn.Module):
    """(value * scale - mean) / std per channel or column, in float32; nothing in the state_dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing, trailing: int) -> None:
        super().__init__()
        self.scale = preprocessing.scale
        shape = (-1, *[1] * trailing)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(shape), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return (values.float() * self.scale - self.mean) / self.std

    def undo(self, values: Tensor) -> Tensor:
        """The raw values that `forward` maps to these."""
        return (values * self.std + self.mean) / self.scale


class Rescale(nn.Module):
    """outputs * std + mean, which brings a regression's answer to the units of its data."""

    mean: Tensor
    std: Tensor

    def __init__(self, scaling: TargetScaling) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(scaling.mean), persistent=False)
        self.register_buffer("std", torch.tensor(scaling.std), persistent=False)

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs * self.std + self.mean


class Model(nn.Module):
    """Raw samples to logits, numbers or vectors (N, outputs): pixels (N, C, H, W) or rows (N, D) of any numeric dtype,
    or token ids (N, S) int64. A language model gives logits (N, S, outputs): at every token those of the next one; and
    a tagger those of the token itself."""

    def __init__(self, config: ModelConfig, network: nn.Module | None = None, input_key: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.input_key = input_key or INPUT_KEYS[type(config.input)]
        """Which of a batch's inputs it reads."""
        self.ignored: list[str] = []
        """Stored tensors that were passed over when it was loaded."""
        self.fit = Resize(config.input, config.preprocessing) if isinstance(config.input, ImageInput) else nn.Identity()
        """Brings raw samples to the size that the network takes."""
        self.preprocess = _preprocess(config)
        self.network = network or students.build_described(config)
        self.rescale: nn.Module = Rescale(config.target_scaling) if config.target_scaling else nn.Identity()

    def forward(self, samples: Tensor) -> Tensor:
        return self.forward_normalized(self.normalized(samples))

    def normalized(self, samples: Tensor) -> Tensor:
        """What the network is given for raw samples."""
        inputs: Tensor = self.preprocess(self.fit(samples))
        return inputs

    def forward_normalized(self, inputs: Tensor) -> Tensor:
        """The outputs for what `normalized` returns."""
        outputs: Tensor = self.rescale(self.network(inputs))
        return outputs

    def denormalized(self, inputs: Tensor) -> Tensor:
        """Raw samples, of the size that the network takes, for which `normalized` returns `inputs`."""
        return self.preprocess.undo(inputs) if isinstance(self.preprocess, Normalize) else inputs

    @property
    def highest_pixel(self) -> float:
        """Largest value of a raw pixel of what it reads; the smallest is 0."""
        return 1.0 / (self.config.preprocessing.scale if self.config.preprocessing else 1.0)

    def forward_hidden(self, samples: Tensor) -> Tensor | HiddenStates:
        """What training looks at: the outputs, or of a language model what its last layer would make them of."""
        return hugging_face.hidden_states(self.network, samples) if self.config.predicts_tokens else self(samples)

    def decode_step(self, tokens: Tensor, memory: Any = None) -> tuple[HiddenStates, Any]:
        """Of a language model: what its last layer is given for token ids (N, S) behind those that `memory` knows, and
        the memory of them all; none: there is nothing before."""
        return hugging_face.decode_step(self.network, tokens, memory)

    def tokens(self, samples: Tensor) -> Tensor | None:
        """(N, S) bool: which token ids of `samples` aren't padding; none where all are that count, or where samples are
        no text."""
        if self.config.predicts_tokens:
            return None
        return samples != self.config.input.pad if isinstance(self.config.input, TextInput) else None


def _preprocess(config: ModelConfig) -> nn.Module:
    if config.preprocessing is None:
        return nn.Identity()
    return Normalize(config.preprocessing, trailing=2 if isinstance(config.input, ImageInput) else 0)


def last_layer(model: Model) -> nn.Linear | None:
    """The last linear layer that gives a number per class, where there is one."""
    layers = {name: layer for name, layer in model.network.named_modules() if isinstance(layer, nn.Linear)}
    fitting = [name for name, layer in layers.items() if layer.out_features == model.config.outputs]
    body = getattr(model.network, "base_model_prefix", None)  # the library may list what comes behind the body first
    behind = [name for name in fitting if body and not name.startswith(f"{body}.")]
    return layers[(behind or fitting)[-1]] if fitting else None
