"""Metrics of predictions of many labels agree with those of whole matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.data.randomness import generator
from worker.metrics import many_labels, multi_label
from worker.tensors import IGNORED

CLASSES = 30


def drawn(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, C), lists (N, P) int32, and the same as 0 and 1 (N, C)."""
    random = generator(0, "many")
    logits = torch.randn(len(lengths), CLASSES, generator=random)
    positives = torch.full((len(lengths), max(lengths)), IGNORED, dtype=torch.int32)
    labels = torch.zeros(len(lengths), CLASSES)
    for row, length in enumerate(lengths):
        chosen = torch.randperm(CLASSES, generator=random)[:length].sort().values
        positives[row, :length] = chosen.int()
        labels[row, chosen] = 1.0
    return logits, positives, labels


@pytest.mark.parametrize("lengths", [[3, 0, 7, 1, 12], [1, 1], [0, 2]])
def test_metrics_are_those_of_the_whole_matrix(lengths: list[int]) -> None:
    logits, positives, labels = drawn(lengths)
    summary = many_labels.summarise(logits, positives)
    assert summary.shape == (len(lengths), many_labels.LARGEST + max(lengths) + 1)
    for k in (1, 3, 5):
        torch.testing.assert_close(
            many_labels.precision_at(summary, positives, k), multi_label.precision_at(logits, labels, k)
        )
    exact = multi_label.negative_log_likelihood(logits, labels)
    torch.testing.assert_close(many_labels.negative_log_likelihood(summary), exact, rtol=1e-6, atol=0.0)


def test_a_summary_moves_no_further_than_the_logits() -> None:
    logits, positives, _ = drawn([3, 0, 7, 1])
    noise = 0.5 * (2 * torch.rand(logits.shape, generator=generator(1, "noise")) - 1)
    moved = many_labels.summarise(logits + noise, positives) - many_labels.summarise(logits, positives)
    assert 0.1 < float(moved.abs().max()) <= float(noise.abs().max()) + 1e-6
