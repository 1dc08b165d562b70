"""A last layer whose outputs share the rows of a codebook (VQ-Logits, arXiv 2505.10202)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.heads import VqLogits
from worker.errors import UserError
from worker.students.heads.registry import HEADS


class CodebookHead(nn.Module):
    """From features (..., H) to logits of codes (..., K), floating. A model has the logits of its V outputs from them:
    those of one code are equal."""

    bias = None
    codes: Tensor

    def __init__(self, weight: Tensor, codes: Tensor, *, full_bias: bool = False) -> None:
        """`weight` is the codebook (K, H), floating, and `codes` (V,) int64 the fixed code of each output; `full_bias`:
        the layer in whose place it is has a bias."""
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("codes", codes)
        self._full_bias = full_bias

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)

    @torch.no_grad()
    def full(self) -> dict[str, Tensor]:
        """Weight (V, H) and bias (V,) of the plain layer with the same outputs, and the `codes` (V,) int32."""
        bias = {"bias": self.weight.new_zeros(len(self.codes))} if self._full_bias else {}
        return {"weight": self.weight.detach()[self.codes], "codes": self.codes.int(), **bias}


@HEADS.register(VqLogits)
def _fresh(spec: VqLogits, width: int, outputs: int) -> CodebookHead:
    require_fewer(spec, outputs)
    codes = torch.zeros(outputs, dtype=torch.int64)
    return CodebookHead(nn.Linear(width, spec.codes, bias=False).weight.detach(), codes)


def require_fewer(spec: VqLogits, outputs: int) -> None:
    """Raise UserError (`invalid_architecture`) unless there are fewer codes than outputs."""
    if spec.codes >= outputs:
        found = f"is {spec.codes}, and there are {outputs} outputs; accepted: fewer than outputs"
        raise UserError("invalid_architecture", f"student.head.codes {found}", "student.head.codes")


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
    if codes.shape != weight.shape[:1]:
        raise ValueError(f"is not a number for each of {len(weight)} outputs")
    require_codes(codes, number)
    book = weight.new_zeros(number, weight.shape[1]).index_copy_(0, codes, weight)
    if not torch.equal(book[codes], weight):
        raise ValueError("gives one code to outputs with different weights")
    return CodebookHead(book, codes, full_bias=layer.bias is not None)


def require_codes(codes: Tensor, number: int) -> None:
    """Raise ValueError unless `codes` (V,) int64 are numbers below `number`."""
    if not 0 <= int(codes.min()) <= int(codes.max()) < number:
        raise ValueError(f"has a number that is not from 0 to {number - 1}")
