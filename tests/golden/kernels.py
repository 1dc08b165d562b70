"""What the kernels over rows of logits compute on the way to their losses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.kernels.rows import row_loss_
from worker.kernels.spec import RowSpec

KIND = "row kernel"
SMALL = {torch.float64: 1e-3, torch.float32: 2e-2}
"""Probabilities below are held absolutely: in float32 to 2e-7, as the file's authors state it."""


def two_pass_softmax(case: Case) -> Iterator[Comparison]:
    """Softmax and log-sum of the row loss, from cross-entropy with class 0: its gradient is softmax - one_hot(0).

    In float64, and in float32 to that precision. The Triton kernel's own log-sum is held against the same file under
    Triton's interpreter, in `tests/worker/kernels/interpreted.py`.
    """
    for dtype in (torch.float64, torch.float32):
        logits = case.inputs["x"].to(dtype)[None].clone()
        first, label = logits[0, 0].clone(), torch.zeros(1, dtype=torch.int64)
        losses = row_loss_(logits, None, label, RowSpec(None, ce_weight=1.0))
        softmax = logits[0] + F.one_hot(label, logits.shape[1])[0]
        name = str(dtype).removeprefix("torch.")
        expected = case.outputs["y_exact_f64"].to(dtype)
        yield Comparison(KIND, f"softmax, {name}", softmax, expected, small=SMALL[dtype])
        log_sum = losses.cross_entropy[0] + first
        yield Comparison(KIND, f"log_sum_exp, {name}", log_sum, case.outputs["log_sum_exp_f64"].to(dtype))
