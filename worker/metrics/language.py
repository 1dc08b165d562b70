"""Metrics of a language model: sums over tokens, a few rows at a time, because all logits would take too much memory.

n rows, V columns of the student, W of the teacher; either may be larger.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_EXPONENT = 700.0
"""Largest exponent whose power is finite in float64."""


class TokenTally:
    """Sums over rows, in float64, on the device of the rows."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> None:
        """Add rows: logits (n, V), floating, the next tokens (n,) int64, and log-probabilities of the teacher (n, W),
        floating."""
        logs = F.log_softmax(logits.float(), dim=-1)
        self._tokens += len(targets)
        choice = logits.argmax(-1)
        self._sum("nll", -logs.gather(1, targets.unsqueeze(1)))
        self._sum("accuracy", choice == targets)
        if teacher is not None:
            self._sum("agreement", choice == teacher.argmax(-1))
            self._sum("kl", _divergence(logs, teacher))

    def _sum(self, name: str, values: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + values.double().sum()

    def metrics(self, size: int = 0) -> dict[str, float]:
        """Means over the tokens: `nll` (nats), `perplexity`, `accuracy`; with a teacher `agreement` and `kl` (nats).

        With `size`, the bytes of the text of all tokens, also `bits_per_byte`: the code length of the text by the
        model's predictions, which does not depend on its tokens.
        """
        means = {name: float(total) / max(1, self._tokens) for name, total in self._sums.items()}
        nll = means.get("nll", 0.0)
        by_bytes = {"bits_per_byte": nll * self._tokens / math.log(2) / size} if size else {}
        return {"perplexity": math.exp(min(nll, LARGEST_EXPONENT)) if nll == nll else nll, **means, **by_bytes}


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) (n,) over the columns of both."""
    width = min(student.shape[1], teacher.shape[1])
    student_logs, teacher_logs = student[:, :width], teacher[:, :width]
    gap = torch.where(teacher_logs.isneginf(), 0.0, teacher_logs - student_logs)
    return (teacher_logs.exp() * gap).sum(-1)
