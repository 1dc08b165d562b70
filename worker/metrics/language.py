"""How well a language model predicts: sums over tokens, a few rows at a time, because all logits would fill any memory.

n rows, V columns of the student, W of the teacher, of which each side may have more than the other.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_EXPONENT = 700.0
"""Of what a float64 still holds."""


class TokenTally:
    """Adds rows up; sums are float64, on the device of the rows."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> None:
        """Take in logits (n, V), the tokens (n,) that came next, and log-probabilities of the teacher (n, W)."""
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

        With `size`, the bytes of text that all tokens stand for, `bits_per_byte` too: what it takes to write the text
        by the model's predictions, whatever its tokens are.
        """
        means = {name: float(total) / max(1, self._tokens) for name, total in self._sums.items()}
        nll = means.get("nll", 0.0)
        by_bytes = {"bits_per_byte": nll * self._tokens / math.log(2) / size} if size else {}
        return {"perplexity": math.exp(min(nll, LARGEST_EXPONENT)) if nll == nll else nll, **means, **by_bytes}


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) (n,) over the columns that both have."""
    width = min(student.shape[1], teacher.shape[1])
    ours, theirs = student[:, :width], teacher[:, :width]
    gap = torch.where(theirs.isneginf(), 0.0, theirs - ours)
    return (theirs.exp() * gap).sum(-1)
