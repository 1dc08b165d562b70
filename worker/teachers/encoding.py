"""Encodes teacher outputs as columns of the cache, and decodes them.

C numbers per output, of which `TopKEncoding` stores k. An encoding has a few named columns, with one row per output.
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
"""Logits of a language model that are computed at a time."""
Columns = dict[str, Tensor]
"""Columns by name, each (B, width) in the dtype of its `StoredColumn`."""


class StoredColumn(NamedTuple):
    """Type of one column."""

    dtype: torch.dtype
    width: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.dtype.itemsize


class Encoding(Protocol):
    """Converts outputs to columns and back; both stay on the device of their argument."""

    columns: dict[str, StoredColumn]

    @property
    def tokens(self) -> int | None:
        """Outputs in a row, one per token; none: one output for the whole sample."""
        ...

    def encode(self, outputs: Answer) -> Columns:
        """The columns of outputs (B, C) of any floating dtype, or of a language model's hidden states."""
        ...

    def decode(self, columns: Columns) -> Answer:
        """Outputs (B, C) float32, or a language model's largest logits."""
        ...


class Dense:
    """Stores all C numbers."""

    tokens = None

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.columns = {"logits": StoredColumn(dtype, size)}

    def encode(self, outputs: Answer) -> Columns:
        """The numbers (B, C) in the stored dtype; raises UserError if one is too large for it."""
        assert isinstance(outputs, Tensor)  # for whole samples
        return {"logits": _narrow(outputs, self.columns["logits"].dtype)}

    def decode(self, columns: Columns) -> Tensor:
        """The numbers (B, C) float32 as they were stored."""
        return columns["logits"].float()


class TopKEncoding:
    """Stores the k largest logits, their classes, and the logarithm of the probability mass of all others."""

    tokens = None

    def __init__(self, classes: int, k: int, dtype: torch.dtype) -> None:
        self._classes, self._k = classes, k
        index_type = torch.int16 if classes <= torch.iinfo(torch.int16).max else torch.int32
        self.columns = {
            "values": StoredColumn(dtype, k),
            "indices": StoredColumn(index_type, k),
            "tail": StoredColumn(torch.float32, 1),
        }

    def encode(self, outputs: Answer) -> Columns:
        """The columns of logits (B, C); `tail` is log sum exp over the classes left out, -inf if there are none."""
        assert isinstance(outputs, Tensor)  # for whole samples
        logits = outputs.float()
        values, indices = logits.topk(self._k, dim=1)
        rest = logits.scatter(1, indices, -torch.inf)
        values = _narrow(values, self.columns["values"].dtype)
        return {
            "values": values,
            "indices": indices.to(self.columns["indices"].dtype),
            "tail": rest.logsumexp(1, keepdim=True),
        }

    def decode(self, columns: Columns) -> Tensor:
        """Logits (B, C) float32; the classes left out share their mass equally, so each is at most the least stored."""
        each = columns["tail"] - math.log(max(self._classes - self._k, 1))
        return each.repeat(1, self._classes).scatter(1, columns["indices"].long(), columns["values"].float())


class TopKTokens:
    """The `TopKEncoding` of a language model, at every token of a sequence; a row is a sequence."""

    def __init__(self, vocabulary: int, k: int, dtype: torch.dtype, tokens: int) -> None:
        self._vocabulary, self._k, self.tokens = vocabulary, k, tokens
        self._each = TopKEncoding(vocabulary, k, dtype)
        once = self._each.columns
        self.columns = {name: column._replace(width=tokens * column.width) for name, column in once.items()}

    def encode(self, outputs: Answer) -> Columns:
        """The columns of hidden states (B, S, H); logits are computed for some tokens at a time."""
        assert isinstance(outputs, HiddenStates)  # of a language model
        count = len(outputs.rows)
        size = max(1, CHUNK // self._vocabulary)
        parts = [self._each.encode(outputs.logits(slice(begin, begin + size))) for begin in range(0, count, size)]
        rows = count // self.tokens
        return {name: torch.cat([part[name] for part in parts]).view(rows, -1) for name in self.columns}

    def decode(self, columns: Columns) -> LikeliestTokens:
        """The largest logits as they were stored: (B, S, k), and their `rest` (B, S) float32."""
        by_token = {name: column.view(len(column), self.tokens, -1) for name, column in columns.items()}
        return LikeliestTokens(by_token["indices"], by_token["values"], by_token["tail"].squeeze(2), self._vocabulary)


class LogitsOfTokens:
    """Stores logits of classes at every token (B, S, C) by the encoding of one token; a row is a sequence."""

    def __init__(self, each: Dense | TopKEncoding, tokens: int) -> None:
        self._each, self.tokens = each, tokens
        once = each.columns
        self.columns = {name: column._replace(width=tokens * column.width) for name, column in once.items()}

    def encode(self, outputs: Answer) -> Columns:
        """The columns of logits (B, S, C), with all tokens of a sequence in one row."""
        assert isinstance(outputs, Tensor)  # few classes, so all logits fit in memory
        found = self._each.encode(outputs.flatten(0, 1))
        return {name: column.reshape(len(outputs), -1) for name, column in found.items()}

    def decode(self, columns: Columns) -> Tensor:
        """Logits (B, S, C) float32."""
        rows = {name: column.reshape(len(column) * self.tokens, -1) for name, column in columns.items()}
        found = self._each.decode(rows)
        return found.view(-1, self.tokens, found.shape[1])


def build_encoding(spec: Kept, size: int, tokens: int | None = None, *, hidden: bool = True) -> Encoding:
    """The encoding that a job chose, for outputs of `size` numbers; raises UserError if it does not fit them.

    There is one output per sample, or one for each of `tokens` tokens, given as `hidden` states or as logits.
    """
    if not isinstance(spec, TopKCache):
        dense = Dense(size, DTYPES[spec.dtype])
        return dense if tokens is None else LogitsOfTokens(dense, tokens)
    if spec.k > size:
        message = f"k is {spec.k}, but the teacher has {size} outputs; accepted: at most {size}"
        raise UserError("invalid_job", message, "teacher_cache.k")
    chosen = size, spec.k, DTYPES[spec.dtype]
    if tokens is None:
        return TopKEncoding(*chosen)
    return TopKTokens(*chosen, tokens) if hidden else LogitsOfTokens(TopKEncoding(*chosen), tokens)


def _narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = values.to(dtype)
    if dtype == torch.float16 and bool((narrow.isinf() & values.isfinite()).any()):
        largest = float(values.abs().max())
        message = f"fp16 can't hold the teacher's {largest:g}; accepted: bf16, fp32"
        raise UserError("invalid_job", message, "teacher_cache.dtype")
    return narrow
