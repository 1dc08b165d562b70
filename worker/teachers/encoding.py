"""What of a teacher's answer is kept, and the answer that is made of it again.

C numbers per answer, k of them kept by `TopK`. What is kept is a handful of named columns, one row for each answer.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from app.recipe.teachers.cache import Kept, TopKCache
from worker.errors import UserError
from worker.outputs import Answer, HiddenStates, LikeliestTokens

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CHUNK = 1 << 24
"""Logits of a language model that are made at a time."""
Columns = dict[str, Tensor]
"""By name, each (B, width)."""


class StoredColumn(NamedTuple):
    """Type of one column."""

    dtype: torch.dtype
    width: int

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize


class Encoding(Protocol):
    """Both ways between answers and columns; either stays on the device of what it is given."""

    columns: dict[str, StoredColumn]

    @property
    def tokens(self) -> int | None:
        """Answers in a row, one at every token; none: there is one, about the whole sample."""
        ...

    def encode(self, answer: Answer) -> Columns:
        """The columns of answers (B, C), or of a language model's."""
        ...

    def decode(self, columns: Columns) -> Answer:
        """Answers (B, C) in float32, or a language model's largest logits."""
        ...


class Dense:
    """All C numbers."""

    tokens = None

    def __init__(self, outputs: int, dtype: torch.dtype) -> None:
        self.columns = {"logits": StoredColumn(dtype, outputs)}

    def encode(self, answer: Answer) -> Columns:
        """The numbers in the kept type; raises UserError when one is too large for it."""
        assert isinstance(answer, Tensor)  # about whole samples
        return {"logits": _narrow(answer, self.columns["logits"].dtype)}

    def decode(self, columns: Columns) -> Tensor:
        """The numbers as they were kept."""
        return columns["logits"].float()


class TopK:
    """The k largest logits, the classes they belong to, and the logarithm of the mass of all others."""

    tokens = None

    def __init__(self, outputs: int, k: int, dtype: torch.dtype) -> None:
        self._outputs, self._k = outputs, k
        index_type = torch.int16 if outputs <= torch.iinfo(torch.int16).max else torch.int32
        self.columns = {
            "values": StoredColumn(dtype, k),
            "indices": StoredColumn(index_type, k),
            "tail": StoredColumn(torch.float32, 1),
        }

    def encode(self, answer: Answer) -> Columns:
        """The columns of answers; `tail` is log sum exp over the classes left out, -inf when there are none."""
        assert isinstance(answer, Tensor)  # about whole samples
        values, indices = answer.float().topk(self._k, dim=1)
        rest = answer.float().scatter(1, indices, -torch.inf)
        values = _narrow(values, self.columns["values"].dtype)
        return {
            "values": values,
            "indices": indices.to(self.columns["indices"].dtype),
            "tail": rest.logsumexp(1, keepdim=True),
        }

    def decode(self, columns: Columns) -> Tensor:
        """Logits that give every class left out an equal part of their mass, at most what the least kept one has."""
        each = columns["tail"] - math.log(max(self._outputs - self._k, 1))
        return each.repeat(1, self._outputs).scatter(1, columns["indices"].long(), columns["values"].float())


class TopKTokens:
    """The same of a language model, at every token of a sequence; a row is a sequence."""

    def __init__(self, outputs: int, k: int, dtype: torch.dtype, tokens: int) -> None:
        self._outputs, self._k, self.tokens = outputs, k, tokens
        self._each = TopK(outputs, k, dtype)
        once = self._each.columns
        self.columns = {name: column._replace(width=tokens * column.width) for name, column in once.items()}

    def encode(self, answer: Answer) -> Columns:
        """The columns, made of the logits of some tokens at a time."""
        assert isinstance(answer, HiddenStates)  # of a language model
        count = len(answer.rows)
        size = max(1, CHUNK // self._outputs)
        parts = [self._each.encode(answer.logits(slice(begin, begin + size))) for begin in range(0, count, size)]
        rows = count // self.tokens
        return {name: torch.cat([part[name] for part in parts]).view(rows, -1) for name in self.columns}

    def decode(self, columns: Columns) -> LikeliestTokens:
        """The largest logits as they were kept."""
        apart = {name: column.view(len(column), self.tokens, -1) for name, column in columns.items()}
        return LikeliestTokens(apart["indices"], apart["values"], apart["tail"].squeeze(2), self._outputs)


class LogitsOfTokens:
    """Logits of classes at every token (B, S, C), by the encoding of a row of them; a row is a sequence."""

    def __init__(self, each: Dense | TopK, tokens: int) -> None:
        self._each, self.tokens = each, tokens
        once = each.columns
        self.columns = {name: column._replace(width=tokens * column.width) for name, column in once.items()}

    def encode(self, answer: Answer) -> Columns:
        """The columns of all tokens side by side."""
        assert isinstance(answer, Tensor)  # small enough to be there at once
        found = self._each.encode(answer.flatten(0, 1))
        return {name: column.reshape(len(answer), -1) for name, column in found.items()}

    def decode(self, columns: Columns) -> Tensor:
        """Logits (B, S, C), in float32."""
        rows = {name: column.reshape(len(column) * self.tokens, -1) for name, column in columns.items()}
        found = self._each.decode(rows)
        return found.view(-1, self.tokens, found.shape[1])


def build_encoding(kept: Kept, outputs: int, tokens: int | None = None, *, hidden: bool = True) -> Encoding:
    """The encoding that a job chose, for answers of `outputs` numbers, one for a sample or at each of so many `tokens`,
    where they come as `hidden` states or as logits; raises UserError when it does not fit them."""
    if not isinstance(kept, TopKCache):
        dense = Dense(outputs, DTYPES[kept.dtype])
        return dense if tokens is None else LogitsOfTokens(dense, tokens)
    if kept.k > outputs:
        message = f"k is {kept.k}, but the teacher gives {outputs} numbers; accepted: at most {outputs}"
        raise UserError("invalid_job", message, "teacher_cache.k")
    chosen = outputs, kept.k, DTYPES[kept.dtype]
    if tokens is None:
        return TopK(*chosen)
    return TopKTokens(*chosen, tokens) if hidden else LogitsOfTokens(TopK(*chosen), tokens)


def _narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = values.to(dtype)
    if dtype == torch.float16 and bool((narrow.isinf() & values.isfinite()).any()):
        largest = float(values.abs().max())
        message = f"fp16 can't hold the teacher's {largest:g}; accepted: bf16 or fp32, which hold any number"
        raise UserError("invalid_job", message, "teacher_cache.dtype")
    return narrow
