"""Probes measure how far features tell classes apart, and need two classes."""

from __future__ import annotations

import pytest
import torch
from sklearn.naive_bayes import GaussianNB
from torch import Tensor

from worker.metrics import probes as module
from worker.metrics.probes import probes

CLASSES = 4


def vectors(count: int = 240, spread: float = 1.5, width: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, width, generator=random, dtype=torch.float64)
    scale = torch.logspace(-1, 2, width, dtype=torch.float64)
    return (centres[labels] + spread * torch.randn(count, width, generator=random, dtype=torch.float64)) * scale, labels


def test_every_other_sample_of_a_class_is_fitted_and_the_rest_is_classified() -> None:
    rows, labels = vectors()
    fitted = torch.cat([(labels == number).nonzero().squeeze(1)[::2] for number in range(CLASSES)]).sort().values
    rest = torch.ones(len(labels), dtype=torch.bool).index_fill(0, fitted, False)
    reference = GaussianNB().fit(rows[fitted].numpy(), labels[fitted].numpy())
    expected = reference.score(rows[rest].numpy(), labels[rest].numpy())
    found = probes(rows, labels)
    assert float(found["bayes_accuracy"]) == expected
    assert found == probes(rows, labels)


def test_features_that_tell_classes_apart_are_measured_better() -> None:
    rows, labels = vectors(spread=0.05)
    assert probes(rows, labels) == {name: 1.0 for name in ("linear_accuracy", "knn_accuracy", "bayes_accuracy")}
    noise = probes(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)), labels)
    assert all(0.05 < float(value) < 0.5 for value in noise.values())


def test_names_of_classes_and_constant_features_don_t_count() -> None:
    rows, labels = vectors()
    plain = probes(rows, labels)
    assert probes(rows, labels * 7 + 3) == plain
    constant = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    assert probes(constant, labels)["linear_accuracy"] == plain["linear_accuracy"]
    assert all(torch.isfinite(value) for value in probes(torch.zeros(12, 3), labels[:12]).values())


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_one_class_or_single_samples_can_t_be_probed(labels: list[int]) -> None:
    assert probes(torch.randn(4, 2), torch.tensor(labels)) == {}


def test_of_many_samples_some_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = vectors(spread=0.05)
    monkeypatch.setattr(module, "MOST", 60)
    assert set(probes(rows, labels)) == {"linear_accuracy", "knn_accuracy", "bayes_accuracy"}
