"""Generation by language models, one token after another; each is read once, for the network keeps keys and values.

Texts whose prompts have different lengths are generated together without any padding before them: the shortest prompt
is read first, and as long as a longer one goes on, its own token is taken instead of the one that was chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.outputs import HiddenStates
from worker.students.model import Model


class SamplingParams(NamedTuple):
    """How the next token is chosen from its logits."""

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int | None = 1
    """So many likeliest tokens are drawn from; 1: the likeliest is taken, none: all are drawn from."""
    vocabulary: int | None = None
    """So many tokens may be chosen, where whoever reads the text knows fewer than the model; none: all of them."""

    def choose(self, logits: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """Token ids (N,) int64 for logits (N, V) of any floating dtype; logits that are not finite give any token."""
        known = logits[:, : self.vocabulary].float().nan_to_num()
        if self.top_k == 1:
            return known.argmax(-1)
        if self.top_k is not None and self.top_k < known.shape[1]:
            least = known.topk(self.top_k).values[:, -1:]
            known = known.masked_fill(known < least, -torch.inf)
        return torch.multinomial((known / self.temperature).softmax(-1), 1, generator=draw).squeeze(1)


GREEDY = SamplingParams()


class Generation(NamedTuple):
    """Texts that a model has generated; what is behind the end of one means nothing."""

    tokens: Tensor
    """(N, T) int64, with the prompts."""
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
    """Texts that begin with the first `lengths` (N,) int64 tokens of `prompts` (N, P) int64, and up to
    `max_new_tokens` behind them.

    A text is over with the first generated token that is one of `ends`; all are when T is reached. The model, in the
    mode and the arithmetic that it is in, and `draw` must be on the device of the prompts. Waits for it after every
    token.
    """
    begin, limits = int(lengths.min()), lengths + max_new_tokens
    tokens = F.pad(prompts, (0, int(limits.max()) - prompts.shape[1]))
    generated = torch.zeros_like(tokens, dtype=torch.bool)
    done, kv_cache = torch.zeros_like(lengths, dtype=torch.bool), None
    fresh = tokens[:, :begin]
    for place in range(begin, tokens.shape[1]):
        states, kv_cache = model.decode_step(fresh, kv_cache)
        chosen = sampling.choose(last_logits(states), draw)
        takes = (lengths <= place) & ~done
        tokens[:, place] = torch.where(takes, chosen, tokens[:, place])
        generated[:, place] = takes
        done |= limits <= place + 1
        if ends is not None:
            done |= takes & torch.isin(chosen, ends)
        if bool(done.all()):
            break
        fresh = tokens[:, place : place + 1]
    return Generation(tokens[:, : place + 1], generated[:, : place + 1])


def greedy_continuation(model: Model, tokens: Tensor, count: int) -> Tensor:
    """Token ids (N, S + count) that begin with `tokens` (N, S) int64, each time with the likeliest token behind."""
    lengths = tokens.new_full(tokens.shape[:1], tokens.shape[1])
    return generate(model, tokens, lengths, count).tokens if count else tokens


def next_logits(model: Model, tokens: Tensor) -> Tensor:
    """Logits (N, V) of the token behind token ids (N, S) int64."""
    states = model.forward_hidden(tokens)
    assert isinstance(states, HiddenStates)
    return last_logits(states)


def last_logits(states: HiddenStates) -> Tensor:
    """Logits (N, V) of the token behind all tokens."""
    return F.linear(states.hidden[:, -1], states.weight, states.bias)
