"""What of a teacher's answer is kept, and the answer that is made of it again.

C numbers per answer, k of them kept by `TopK`. What is kept is a handful of named columns, one row for each answer.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from app.recipe.teacher_cache import Kept, TopKCache
from worker.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Columns = dict[str, Tensor]
"""By name, each (B, width)."""


class Column(NamedTuple):
    """Type of one column."""

    dtype: torch.dtype
    width: int

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize


class Encoding(Protocol):
    """Both ways between answers and columns; either stays on the device of what it is given."""

    columns: dict[str, Column]

    def encode(self, logits: Tensor) -> Columns:
        """The columns of answers (B, C)."""
        ...

    def decode(self, columns: Columns) -> Tensor:
        """Answers (B, C) in float32."""
        ...


class Dense:
    """All C numbers."""

    def __init__(self, outputs: int, dtype: torch.dtype) -> None:
        self.columns = {"logits": Column(dtype, outputs)}

    def encode(self, logits: Tensor) -> Columns:
        """The numbers in the kept type; raises UserError when one is too large for it."""
        return {"logits": _narrow(logits, self.columns["logits"].dtype)}

    def decode(self, columns: Columns) -> Tensor:
        """The numbers as they were kept."""
        return columns["logits"].float()


class TopK:
    """The k largest logits, the classes they belong to, and the logarithm of the mass of all others."""

    def __init__(self, outputs: int, k: int, dtype: torch.dtype) -> None:
        self._outputs, self._k = outputs, k
        index_type = torch.int16 if outputs <= torch.iinfo(torch.int16).max else torch.int32
        self.columns = {"values": Column(dtype, k), "indices": Column(index_type, k), "tail": Column(torch.float32, 1)}

    def encode(self, logits: Tensor) -> Columns:
        """The columns of `logits`; `tail` is log sum exp over the classes left out, -inf when there are none."""
        values, indices = logits.float().topk(self._k, dim=1)
        rest = logits.float().scatter(1, indices, -torch.inf)
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


def build_encoding(kept: Kept, outputs: int) -> Encoding:
    """The encoding that a job chose, for answers of `outputs` numbers; raises UserError when it does not fit them."""
    if not isinstance(kept, TopKCache):
        return Dense(outputs, DTYPES[kept.dtype])
    if kept.k > outputs:
        message = f"k is {kept.k}, but the teacher gives {outputs} numbers; accepted: at most {outputs}"
        raise UserError("invalid_job", message, "teacher_cache.k")
    return TopK(outputs, kept.k, DTYPES[kept.dtype])


def _narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = values.to(dtype)
    if dtype == torch.float16 and bool((narrow.isinf() & values.isfinite()).any()):
        largest = float(values.abs().max())
        message = f"fp16 can't hold the teacher's {largest:g}; accepted: bf16 or fp32, which hold any number"
        raise UserError("invalid_job", message, "teacher_cache.dtype")
    return narrow
