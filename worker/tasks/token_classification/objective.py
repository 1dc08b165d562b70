"""The objective of a tagger: its rows are words."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from worker.losses.objective import BatchOutputs, Objective


class WordObjective(Objective):
    """Named terms and their weighted sum, as `Objective`, with a row for each token; those that no word begins with
    are ignored. Logits are (B, S, C) on both sides, targets (B, S)."""

    def __call__(self, seen: BatchOutputs, count: Tensor, epoch: float = 0.0, epochs: float = 1.0) -> dict[str, Tensor]:
        """See `Objective`."""
        return super().__call__(_by_token(seen), count, epoch, epochs)


def _by_token(seen: BatchOutputs) -> BatchOutputs:
    signals = {
        name: replace(signal, outputs=signal.logits.flatten(0, 1), tokens=None) for name, signal in seen.signals.items()
    }
    outputs, targets = seen.outputs.flatten(0, 1), seen.targets.flatten()
    return replace(seen, student=outputs, targets=targets, signals=signals, tokens=None)
