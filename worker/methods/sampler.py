"""Samples texts from a model for training, and converts them to batches of tokens and targets."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.methods.on_policy import OnPolicy
from app.recipe.methods.sequence_level import SequenceLevel
from worker.data.batches import Batch, whole_split
from worker.data.prompts import Prompts
from worker.data.randomness import derive_seed
from worker.students.decoding import Generation, SamplingParams, generate
from worker.students.measure import Reading
from worker.students.model import Model
from worker.tensors import IGNORED

CHUNK = 64
"""Texts that are generated at a time; another number would change the sampled texts."""


class Sampled(NamedTuple):
    """Texts for some prompts, and the floating-point operations of generating them."""

    generation: Generation
    flops: int


class Sampler:
    """Generates texts by a job's settings: a pure function of the model's weights, the prompts, seed and purpose."""

    def __init__(
        self, spec: OnPolicy | SequenceLevel, prompts: Prompts, vocabulary: int, seed: int, *, autocast: bool
    ) -> None:
        self._max_new_tokens, self._seed, self._autocast = spec.new_tokens, seed, autocast
        self._params = SamplingParams(spec.temperature, spec.top_k, vocabulary)
        self._ends = torch.tensor(prompts.ends, device=prompts.tokens.device)

    def sample(self, model: Model, cost: Reading, prompts: Batch, *purpose: str | int) -> Sampled:
        """Texts for all `prompts` (token ids (N, P) int64 in its only input, lengths (N,) int64 as its targets),
        without dropout."""
        [tokens], was_training = prompts.inputs.values(), model.training
        model.eval()
        chunks = zip(torch.split(tokens, CHUNK), torch.split(prompts.targets, CHUNK), strict=True)
        sampled = [self._chunk(model, cost, *chunk, *purpose, number) for number, chunk in enumerate(chunks)]
        model.train(was_training)
        longest = max(each.generation.tokens.shape[1] for each in sampled)
        padded = [_padded(each.generation, longest) for each in sampled]
        whole = Generation(*(torch.cat(side) for side in zip(*padded, strict=True)))
        return Sampled(whole, sum(each.flops for each in sampled))

    def _chunk(self, model: Model, cost: Reading, tokens: Tensor, lengths: Tensor, *purpose: str | int) -> Sampled:
        draw = torch.Generator(tokens.device).manual_seed(derive_seed(self._seed, "writing", *purpose))
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self._autocast):
            found = generate(model, tokens, lengths, self._max_new_tokens, self._params, self._ends, draw)
        return Sampled(found, len(tokens) * cost.writing(int(lengths.min()), found.tokens.shape[1]))


def _padded(generation: Generation, length: int) -> Generation:
    missing = length - generation.tokens.shape[1]
    return Generation(F.pad(generation.tokens, (0, missing)), F.pad(generation.generated, (0, missing)))


def as_batch(generation: Generation, input_key: str) -> Batch:
    """A training batch: inputs (N, T-1) int64, targets (N, T-1) int64. The target of a token is the next one if the
    model generated that; all others are ignored."""
    targets = torch.where(generation.generated, generation.tokens, IGNORED)[:, 1:]
    return whole_split({input_key: generation.tokens[:, :-1]}, targets)
