"""A last layer whose outputs share the rows of a codebook (VQ-Logits, arXiv 2505.10202)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.clustering import k_means
from worker.data.randomness import derive_seed
from worker.errors import UserError

if TYPE_CHECKING:  # a model has a network, which may have this head
    from worker.students.model import Model


class CodebookHead(nn.Module):
    """From hidden states (..., H) to logits (..., V), floating, of which those of one code are equal."""

    bias = None
    codes: Tensor

    def __init__(self, weight: Tensor, codes: Tensor, *, full_bias: bool) -> None:
        """`weight` is the codebook (K, H), floating, and `codes` (V,) int64 the fixed code of each output; `full_bias`:
        the layer in whose place it is has a bias."""
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("codes", codes)
        self._full_bias = full_bias

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)[..., self.codes]

    @torch.no_grad()
    def full(self) -> dict[str, Tensor]:
        """Weight (V, H) and bias (V,) of the plain layer with the same outputs, and the `codes` (V,) int32."""
        bias = {"bias": self.weight.new_zeros(len(self.codes))} if self._full_bias else {}
        return {"weight": self.weight.detach()[self.codes], "codes": self.codes.int(), **bias}


def codebook_in_place_of(layer: nn.Linear, number: int) -> CodebookHead:
    """A codebook (K, H) with `number` of the rows of a fresh `layer` (V, H); every output has the code 0 until
    `start_codebook`, or stored weights, give it another one."""
    codes = torch.zeros(len(layer.weight), dtype=torch.int64, device=layer.weight.device)
    return CodebookHead(layer.weight.detach()[:number].clone(), codes, full_bias=layer.bias is not None)


@torch.no_grad()
def codebook_of(layer: nn.Linear, codes: Tensor, number: int) -> CodebookHead:
    """The codebook (K, H) of `number` rows whose `full` form is `layer` (V, H), with its `codes` (V,) int64. A code
    without outputs has a row of zeros. Raises ValueError if it is not that of a codebook."""
    weight = layer.weight.detach()
    if codes.shape != weight.shape[:1] or not 0 <= int(codes.min()) <= int(codes.max()) < number:
        raise ValueError(f"is not a number below {number} for each of {len(weight)} tokens")
    book = weight.new_zeros(number, weight.shape[1]).index_copy_(0, codes, weight)
    if not torch.equal(book[codes], weight):
        raise ValueError("gives one code to tokens with different weights")
    return CodebookHead(book, codes, full_bias=layer.bias is not None)


@torch.no_grad()
def start_codebook(student: Model, teachers: Mapping[str, Model], seed: int) -> None:
    """Cluster the output embeddings of the first teacher with the student's tokens, if the student's last layer is a
    codebook: a token's cluster becomes its code, and the centres the codebook, if both models are of one width.

    Raises UserError (`invalid_job`) if there is no such teacher.
    """
    layer = last_decoder_layer(student)
    if not isinstance(layer, CodebookHead):
        return
    teacher = next((each for each in teachers.values() if each.input_key == student.input_key), None)
    source = None if teacher is None else last_decoder_layer(teacher)
    if source is None:
        found = "is vq-logits, and no teacher has the student's tokens, whose output embeddings are clustered"
        raise UserError("invalid_job", f"student.head.kind {found}; accepted: linear", "student.head.kind")
    rows = source.full()["weight"] if isinstance(source, CodebookHead) else source.weight.detach()
    rows = F.pad(rows.float().cpu(), (0, 0, 0, max(0, len(layer.codes) - len(rows))))[: len(layer.codes)]
    draw = torch.Generator().manual_seed(derive_seed(seed, "codebook"))
    first = torch.randperm(len(rows), generator=draw)[: len(layer.weight)]
    centres, codes = k_means(rows, rows[first])
    layer.codes.copy_(codes)
    if centres.shape == layer.weight.shape:
        layer.weight.copy_(centres)


def last_decoder_layer(model: Model) -> nn.Linear | CodebookHead | None:
    """The last layer of a language model; none: it is another kind of model."""
    found: Any = model.network.get_output_embeddings() if model.config.predicts_tokens else None  # type: ignore[operator]
    return found  # type: ignore[no-any-return]
