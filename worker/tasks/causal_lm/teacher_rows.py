"""A teacher's logits of held-out tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from worker.data.batches import Batch
from worker.students.model import Model
from worker.tasks.causal_lm.evaluator import hidden_states_of, labels_of
from worker.tensors import IGNORED

AT_ONCE = 64
"""Tokens whose logits are computed at a time."""


def teacher_rows(teacher: Model, samples: Batch) -> Iterator[Tensor]:
    """Logits (n, V), floating, of some tokens of `samples` after the other."""
    for part in samples.parts(1):
        tokens = part.inputs[teacher.input_key]
        states = hidden_states_of(teacher, tokens.to(next(teacher.parameters()).device))
        rows = (labels_of(part, teacher.input_key) != IGNORED).nonzero().squeeze(1)
        yield from (states.logits(some.to(states.hidden.device)) for some in torch.split(rows, AT_ONCE))
