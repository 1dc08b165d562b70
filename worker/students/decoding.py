"""What language models write, token behind token: each is read once, for the network keeps its keys and values.

Texts that begin with prompts of different lengths are written together without any padding before them: the shortest
prompt is read first, and as long as a longer one goes on, its own token is taken instead of the one that was chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.outputs import HiddenStates
from worker.students.model import Model


class Manner(NamedTuple):
    """How the next token is chosen."""

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int | None = 1
    """So many likeliest tokens are drawn from; 1: the likeliest is taken, none: all are drawn from."""
    vocabulary: int | None = None
    """So many tokens are known to whoever reads the text, which may be fewer than the writer's; none: all of them."""

    def choose(self, logits: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """Token ids (N,) by logits (N, V).

        Of a model whose numbers left the finite ones it is any token: the loss of the step will tell.
        """
        known = logits[:, : self.vocabulary].float().nan_to_num()
        if self.top_k == 1:
            return known.argmax(-1)
        if self.top_k is not None and self.top_k < known.shape[1]:
            least = known.topk(self.top_k).values[:, -1:]
            known = known.masked_fill(known < least, -torch.inf)
        return torch.multinomial((known / self.temperature).softmax(-1), 1, generator=draw).squeeze(1)


LIKELIEST = Manner()


class Written(NamedTuple):
    """Texts that a model wrote; what is behind the end of one means nothing."""

    tokens: Tensor
    """(N, T) int64, with the prompts."""
    own: Tensor
    """(N, T) bool: tokens that the model chose."""


@torch.no_grad()
def write(
    model: Model,
    prompts: Tensor,
    lengths: Tensor,
    most: int,
    manner: Manner = LIKELIEST,
    ends: Tensor | None = None,
    draw: torch.Generator | None = None,
) -> Written:
    """Texts that begin with the first `lengths` (N,) tokens of `prompts` (N, P) and have up to `most` behind them.

    A text is over with the first token that is one of `ends`; all are when T is reached. The model, in the mode and the
    arithmetic that it is in, and `draw` must be on the device of the prompts. Waits for it after every token.
    """
    begin, limits = int(lengths.min()), lengths + most
    tokens = F.pad(prompts, (0, int(limits.max()) - prompts.shape[1]))
    own, done, memory = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(lengths, dtype=torch.bool), None
    fresh = tokens[:, :begin]
    for place in range(begin, tokens.shape[1]):
        states, memory = model.decode_step(fresh, memory)
        chosen = manner.choose(last_logits(states), draw)
        writes = (lengths <= place) & ~done
        tokens[:, place] = torch.where(writes, chosen, tokens[:, place])
        own[:, place] = writes
        done |= limits <= place + 1
        if ends is not None:
            done |= writes & torch.isin(chosen, ends)
        if bool(done.all()):
            break
        fresh = tokens[:, place : place + 1]
    return Written(tokens[:, : place + 1], own[:, : place + 1])


def write_on(model: Model, tokens: Tensor, count: int) -> Tensor:
    """Token ids (N, S + count) that begin with `tokens` (N, S), each time with the likeliest token behind."""
    return write(model, tokens, tokens.new_full(tokens.shape[:1], tokens.shape[1]), count).tokens if count else tokens


def next_logits(model: Model, tokens: Tensor) -> Tensor:
    """Logits (N, V) of what comes behind token ids (N, S)."""
    states = model.forward_hidden(tokens)
    assert isinstance(states, HiddenStates)
    return last_logits(states)


def last_logits(states: HiddenStates) -> Tensor:
    """Logits (N, V) of what comes behind all tokens."""
    return F.linear(states.hidden[:, -1], states.weight, states.bias)
