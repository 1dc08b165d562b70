"""Dual encoders (2310.10636): one network encodes texts and the texts of all labels, and their cosines are the logits.

In training the labels are encoded in every forward pass, with gradient. In evaluation their vectors are computed once
for the weights that the model has, and after the last step they are all that is kept of the labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.recipe.plan import LABELS_AT_ONCE
from app.recipe.students.architectures import DualEncoder, Transformers
from app.recipe.students.model import Input, ModelConfig
from app.recipe.students.pooling import Embedding
from worker.errors import UserError
from worker.students import hugging_face
from worker.tensors import at_least_float32
from worker.transformers_library import width_of

ENCODER = "encoder."
"""Prefix of the names of the encoder's weights."""


class DualEncoderNetwork(nn.Module):
    """From token ids (N, S) int64 to logits (N, C), float32: the cosines of texts and labels, divided by the
    temperature."""

    labels: Tensor
    """Vectors of the labels (C, D), of length 1, for the weights with which they were computed last."""
    label_tokens: Tensor | None
    """Token ids (C, T) int64 of the labels, the shortest first; none: only their vectors are known."""
    label_places: Tensor | None
    """For each class its row in these, (C,) int64."""

    def __init__(self, encoder: nn.Module, width: int, outputs: int, temperature: float) -> None:
        super().__init__()
        self.encoder, self.temperature = encoder, temperature
        self.register_buffer("labels", torch.zeros(outputs, width))
        self.register_buffer("label_tokens", None, persistent=False)
        self.register_buffer("label_places", None, persistent=False)
        self._lengths = torch.zeros(0, dtype=torch.int64)
        """Tokens of each label (C,) int64, on the CPU, in the order of `label_tokens`."""
        self._chosen: Tensor | None = None
        """Classes (L,) int64 whose labels the next forward pass in training encodes; none: all."""
        self._current = False
        """Whether `labels` are those of the weights, which may change whenever the mode is set."""

    def forward(self, tokens: Tensor) -> Tensor:
        labels = self._label_vectors()  # before the texts: a recorder keeps the activations of the last run
        texts = self._unit(tokens)
        with _in_float32(texts):
            return texts @ at_least_float32(labels).T / self.temperature  # those of a lowered teacher are in bf16

    def train(self, mode: bool = True) -> DualEncoderNetwork:
        self._current = False
        return super().train(mode)

    def read_labels(self, tokens: Tensor, pad: int) -> None:
        """Encode from now on the labels whose texts are token ids (C, T) int64, padded behind with `pad`."""
        lengths = (tokens != pad).sum(1)
        order = lengths.argsort(stable=True)
        self.label_tokens, self.label_places = tokens[order], order.argsort()
        self._lengths = lengths[order].clamp(min=1).cpu()

    def choose_labels(self, needed: Tensor, count: int) -> Tensor:
        """Classes (L,) int64, ascending, that the next forward pass in training returns the logits of, in this order:
        the `needed` ones (n,) int64, each once, and others, drawn from torch's seed, up to `count`."""
        others = torch.ones(len(self.labels), dtype=torch.bool, device=needed.device)
        others[needed] = False
        rest = others.nonzero().squeeze(1)
        drawn = torch.randperm(len(rest))[: max(0, count - len(needed))].to(needed.device)
        self._chosen = torch.cat((needed, rest[drawn])).sort().values
        return self._chosen

    def store_labels(self) -> None:
        """Keep the vectors of the labels for the present weights, and forget their texts; in evaluation mode."""
        self._label_vectors()
        self.label_tokens = self.label_places = None

    def take_labels(self, places: Tensor) -> None:
        """Keep the labels of the classes with these numbers, (C',) int64, in this order."""
        self.labels = self.labels[places]

    def _label_vectors(self) -> Tensor:
        """Vectors (C, D) of length 1 of all labels, in training with gradient."""
        if self.label_tokens is None:
            return self.labels
        if self.training:
            chosen, self._chosen = self._chosen, None
            return self._encoded(self.label_tokens, self.label_places, chosen)
        if not self._current:
            with torch.no_grad():
                self.labels.copy_(self._encoded(self.label_tokens, self.label_places))
            self._current = True
        return self.labels

    def _encoded(self, tokens: Tensor, places: Tensor | None, chosen: Tensor | None = None) -> Tensor:
        """Vectors of all labels, or of the `chosen` classes. Some at a time, which are encoded again in the backward
        pass, so that memory does not grow with the labels times the depth."""
        assert places is not None  # beside the tokens
        lengths = self._lengths
        if chosen is not None:
            rows, back = places[chosen].sort()
            tokens, lengths, places = tokens[rows], lengths[rows.cpu()], back.argsort()
        parts = zip(torch.split(tokens, LABELS_AT_ONCE), torch.split(lengths, LABELS_AT_ONCE), strict=True)
        vectors = [checkpoint(self._unit, part[:, : int(own[-1])], use_reentrant=False) for part, own in parts]
        return torch.cat(vectors)[places]

    def _unit(self, tokens: Tensor) -> Tensor:
        """Vectors (N, D) of length 1, in at least float32."""
        return F.normalize(at_least_float32(self.encoder(tokens)), dim=-1)


@contextmanager
def _in_float32(values: Tensor) -> Iterator[None]:
    """Without autocast: the 8 bits of bf16 are few for a cosine that is divided by a small temperature."""
    if not torch.is_autocast_enabled(values.device.type):  # the exporters trace no context
        yield
        return
    with torch.autocast(values.device.type, enabled=False):
        yield


def build(network: DualEncoder, sample: Input, outputs: int) -> DualEncoderNetwork:
    """A fresh network, whose labels have no texts yet. Raises UserError (`invalid_architecture`)."""
    with _naming_the_encoder():
        width = width_of(encoder_of(network))
        encoder = hugging_face.build(encoder_of(network), sample, width, _pooled(network))
    return DualEncoderNetwork(encoder, width, outputs, network.temperature)


def encoder_of(network: DualEncoder) -> Transformers:
    """The network of the encoder."""
    assert isinstance(network.encoder, Transformers)  # a stored one was replaced by its network
    return network.encoder


def encoder_config(config: ModelConfig) -> ModelConfig:
    """Description of a dual encoder's encoder alone, as a model of embeddings."""
    network = config.architecture
    assert isinstance(network, DualEncoder)  # by the caller
    encoder = encoder_of(network)
    embedding = _pooled(network)
    return ModelConfig(
        task="embedding", architecture=encoder, input=config.input, targets=width_of(encoder), embedding=embedding
    )


def _pooled(network: DualEncoder) -> Embedding:
    """Its vector of a text, before that is divided by its length."""
    assert network.pooling is not None  # that of a stored model, or the default
    return Embedding(pooling=network.pooling)


@contextmanager
def _naming_the_encoder() -> Iterator[None]:
    """Turn the path of the network in an error into that of the encoder."""
    try:
        yield
    except UserError as error:
        param = error.param and error.param.replace("student.", "student.encoder.", 1)
        raise UserError(error.code, error.message, param) from error
