"""A model: a network with its preprocessing, from raw samples to outputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.architectures import DualEncoder, codebook_of
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing, TargetScaling, TextInput
from worker import students
from worker.outputs import HiddenStates
from worker.students import hugging_face
from worker.students.heads.vq_logits import CodebookHead
from worker.students.last_linear import last_linear
from worker.tensors import at_least_float32


class Resize(nn.Module):
    """Images (N, C, H, W) of another size than the network's are resampled (antialiased) in float32, and their centre
    is cropped if the preprocessing sets it."""

    def __init__(self, image: ImageInput, preprocessing: Preprocessing | None) -> None:
        super().__init__()
        self.size = (image.height, image.width)
        settings = preprocessing or Preprocessing(mean=[0.0], std=[1.0])
        self.mode, self.crop, self.highest = settings.interpolation, settings.crop, 1.0 / settings.scale

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == self.size:
            return images
        size = self.size if self.crop is None else self._covering(images.shape[-2], images.shape[-1], self.crop)
        resized = F.interpolate(images.float(), size, mode=self.mode, antialias=True, align_corners=False)
        if self.mode == "bicubic":  # which overshoots; image libraries clip its values
            resized = resized.clamp(0.0, self.highest)
        top, left = (round((whole - side) / 2) for whole, side in zip(size, self.size, strict=True))
        return resized[..., top : top + self.size[0], left : left + self.size[1]]

    def _covering(self, height: int, width: int, crop: float) -> tuple[int, int]:
        """The smallest size in proportion to `height` and `width` that covers the network's size divided by `crop`."""
        wanted = [int(side / crop) for side in self.size]
        if wanted[0] / height >= wanted[1] / width:
            return wanted[0], max(int(wanted[0] * width / height), wanted[1])
        return max(int(wanted[1] * height / width), wanted[0]), wanted[1]


class Normalize(nn.Module):
    """(value * scale - mean) / std per channel (N, C, H, W) or column (N, D), in float32; adds nothing to the
    state_dict."""

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
    """predictions * std + mean (N, T), which converts a regression's predictions to the units of its data."""

    mean: Tensor
    std: Tensor

    def __init__(self, scaling: TargetScaling) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(scaling.mean), persistent=False)
        self.register_buffer("std", torch.tensor(scaling.std), persistent=False)

    def forward(self, predictions: Tensor) -> Tensor:
        return predictions * self.std + self.mean


class UnitLength(nn.Module):
    """Vectors (N, D), floating, divided by their length, in at least float32."""

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(at_least_float32(vectors), dim=-1)


class Model(nn.Module):
    """From raw samples to logits, predictions or embeddings (N, outputs), floating. Samples are pixels (N, C, H, W) or
    rows (N, D) of any numeric dtype, or token ids (N, S) int64. A language model outputs logits (N, S, outputs): at
    every token those of the next one; a token classifier those of the token itself."""

    def __init__(self, config: ModelConfig, network: nn.Module | None = None, input_key: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.input_key = input_key or config.input.key
        """Key of its inputs in a batch; a model with a tokenizer of its own has another than the others."""
        self.ignored: list[str] = []
        """Names of stored tensors that were ignored when it was loaded."""
        self.fit = Resize(config.input, config.preprocessing) if isinstance(config.input, ImageInput) else nn.Identity()
        """Resizes raw samples to the network's size."""
        self.preprocess = _preprocess(config)
        self.network = network or students.build_described(config)
        self.rescale = _output_layer(config)

    def forward(self, samples: Tensor) -> Tensor:
        return self.forward_normalized(self.normalized(samples))

    def normalized(self, samples: Tensor) -> Tensor:
        """What the network is given for raw samples."""
        inputs: Tensor = self.preprocess(self.fit(samples))
        return inputs

    def forward_normalized(self, inputs: Tensor) -> Tensor:
        """The outputs for what `normalized` returns."""
        outputs: Tensor = self.rescale(self.network(inputs))
        return outputs if self.codebook is None else outputs[..., self.codebook.codes]

    def forward_codes(self, samples: Tensor) -> Tensor:
        """Logits of codes (N, K), floating, of a classifier whose last layer is a codebook; `samples` as in
        `forward`."""
        logits: Tensor = self.network(self.normalized(samples))
        return logits

    @property
    def codebook(self) -> CodebookHead | None:
        """Its last layer, if that is a codebook."""
        if codebook_of(self.config.architecture) is None:
            return None
        return next(layer for layer in self.network.modules() if isinstance(layer, CodebookHead))

    def denormalized(self, inputs: Tensor) -> Tensor:
        """Raw samples, of the size that the network takes, for which `normalized` returns `inputs`."""
        return self.preprocess.undo(inputs) if isinstance(self.preprocess, Normalize) else inputs

    @property
    def highest_pixel(self) -> float:
        """Largest value of a raw pixel of what it reads; the smallest is 0."""
        return 1.0 / (self.config.preprocessing.scale if self.config.preprocessing else 1.0)

    def in_pixel_range(self, images: Tensor) -> bool:
        """Whether all values of raw `images` (any numeric dtype) are from 0 to `highest_pixel`, so that their range is
        known."""
        if images.dtype == torch.uint8 and self.highest_pixel >= torch.iinfo(torch.uint8).max:
            return True
        return float(images.min()) >= 0.0 and float(images.max()) <= self.highest_pixel * (1 + 1e-6)

    def forward_hidden(self, samples: Tensor) -> Tensor | HiddenStates:
        """Outputs (N, outputs) for training, or, of a language model, the inputs of its last layer; `samples` as in
        `forward`."""
        return hugging_face.hidden_states(self.network, samples) if self.config.predicts_tokens else self(samples)

    def decode_step(self, tokens: Tensor, kv_cache: Any = None) -> tuple[HiddenStates, Any]:
        """For a language model: inputs of its last layer for token ids (N, S) int64 after those in `kv_cache`, and the
        cache of all of them; none: there are no tokens before."""
        return hugging_face.decode_step(self.network, tokens, kv_cache)

    def tokens(self, samples: Tensor) -> Tensor | None:
        """Mask (N, S) bool of the token ids in `samples` that aren't padding; none for a language model, whose tokens
        all count, or if samples are no texts."""
        if self.config.predicts_tokens:
            return None
        return samples != self.config.input.pad if isinstance(self.config.input, TextInput) else None


def _output_layer(config: ModelConfig) -> nn.Module:
    """What is applied to the network's outputs, without parameters; an encoder of texts has it within its network."""
    if config.target_scaling is not None:
        return Rescale(config.target_scaling)
    unit = config.embedding is not None and config.embedding.normalise and config.pooling is None
    return UnitLength() if unit else nn.Identity()


def _preprocess(config: ModelConfig) -> nn.Module:
    if config.preprocessing is None:
        return nn.Identity()
    return Normalize(config.preprocessing, trailing=2 if isinstance(config.input, ImageInput) else 0)


def last_layer(model: Model) -> nn.Linear | None:
    """The last linear layer with as many outputs as the model, if there is one."""
    if isinstance(model.config.architecture, DualEncoder) or model.codebook is not None:  # cosines, and codes
        return None
    name = last_linear(model.network, model.config.outputs)
    found = None if name is None else model.network.get_submodule(name)
    assert found is None or isinstance(found, nn.Linear)  # by its search
    return found
