"""Generation by language models, token by token, with a cache of keys and values.

Texts with prompts of different lengths are generated together without padding: the model first reads as many tokens as
the shortest prompt has; within a longer prompt, its next token is used instead of the chosen one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.outputs import HiddenStates
from worker.students.model import Model


class SamplingParams(NamedTuple):
    """Parameters for choosing the next token from its logits."""

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int | None = 1
    """Number of likeliest tokens to sample from; 1: the likeliest is chosen, none: all."""
    vocabulary: int | None = None
    """Number of tokens that may be chosen, if the reader of the text has a smaller vocabulary; none: all."""

    def choose(self, logits: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """Token ids (N,) int64 for logits (N, V) of any floating dtype; the choice for logits that are not finite is
        arbitrary."""
        known = logits[:, : self.vocabulary].float().nan_to_num()
        if self.top_k == 1:
            return known.argmax(-1)
        if self.top_k is not None and self.top_k < known.shape[1]:
            least = known.topk(self.top_k).values[:, -1:]
            known = known.masked_fill(known < least, -torch.inf)
        return torch.multinomial((known / self.temperature).softmax(-1), 1, generator=draw).squeeze(1)


GREEDY = SamplingParams()


class Generation(NamedTuple):
    """Texts that a model has generated; tokens after the end of a text have no meaning."""

    tokens: Tensor
    """(N, T) int64, prompts included."""
    generated: Tensor
    """(N, T) bool: tokens that the model chose."""


@torch.no_grad()
def generate(
    model: Model,
    prompts: Tensor,
    lengths: Tensor,
    max_new_tokens: int,
    sampling: SamplingParams = GREEDY,
    ends: Tensor | None = None,
    draw: torch.Generator | None = None,
) -> Generation:
    """Texts that begin with the first `lengths` (N,) int64 tokens of `prompts` (N, P) int64, and continue with up to
    `max_new_tokens`.

    A text ends with the first generated token that is one of `ends` (E,) int64; all end at T. The model, whose mode and
    arithmetic are not changed, and `draw` must be on the device of the prompts. Waits for the device after every token.
    """
    begin, limits = int(lengths.min()), lengths + max_new_tokens
    tokens = F.pad(prompts, (0, int(limits.max()) - prompts.shape[1]))
    generated = torch.zeros_like(tokens, dtype=torch.bool)
    done, kv_cache = torch.zeros_like(lengths, dtype=torch.bool), None
    fresh = tokens[:, :begin]
    for position in range(begin, tokens.shape[1]):
        states, kv_cache = model.decode_step(fresh, kv_cache)
        chosen = sampling.choose(last_logits(states), draw)
        takes = (lengths <= position) & ~done
        tokens[:, position] = torch.where(takes, chosen, tokens[:, position])
        generated[:, position] = takes
        done |= limits <= position + 1
        if ends is not None:
            done |= takes & torch.isin(chosen, ends)
        if bool(done.all()):
            break
        fresh = tokens[:, position : position + 1]
    return Generation(tokens[:, : position + 1], generated[:, : position + 1])


def greedy_continuation(model: Model, tokens: Tensor, count: int) -> Tensor:
    """Token ids (N, S + count) int64: `tokens` (N, S) int64, continued with the likeliest tokens."""
    lengths = tokens.new_full(tokens.shape[:1], tokens.shape[1])
    return generate(model, tokens, lengths, count).tokens if count else tokens


def next_logits(model: Model, tokens: Tensor) -> Tensor:
    """Logits (N, V), floating, of the next token after token ids (N, S) int64."""
    states = model.forward_hidden(tokens)
    assert isinstance(states, HiddenStates)
    return last_logits(states)


def last_logits(states: HiddenStates) -> Tensor:
    """Logits (N, V), floating, of the next token after all tokens."""
    return states._replace(hidden=states.hidden[:, -1:]).logits(slice(None))
