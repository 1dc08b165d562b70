"""Probes agree with scikit-learn's classifiers, and need two classes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from worker.metrics import probes as module
from worker.metrics.probes import Probed, linear_probe, naive_bayes, nearest_neighbours, probes

CLASSES = 4


def vectors(count: int = 240, spread: float = 1.5, width: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, width, generator=random, dtype=torch.float64)
    scale = torch.logspace(-1, 2, width, dtype=torch.float64)
    return (centres[labels] + spread * torch.randn(count, width, generator=random, dtype=torch.float64)) * scale, labels


def halves() -> Probed:
    rows, labels = vectors()
    return Probed(rows[:130], labels[:130], rows[130:], labels[130:])


@pytest.mark.parametrize(
    ("probe", "reference"),
    [
        (linear_probe, lambda: make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=5000))),
        (nearest_neighbours, lambda: KNeighborsClassifier(5, metric="cosine")),
        (naive_bayes, GaussianNB),
    ],
)
def test_a_probe_classifies_as_scikit_learn_does(
    probe: Callable[[Probed], Tensor], reference: Callable[[], object]
) -> None:
    probed = halves()
    made = reference()
    made.fit(probed.fitted.numpy(), probed.classes.numpy())  # type: ignore[attr-defined]
    expected = torch.from_numpy(made.predict(probed.rest.numpy()))  # type: ignore[attr-defined]
    found = probe(probed)
    assert torch.equal(found, expected)
    assert len(torch.unique(found)) == CLASSES
    assert torch.equal(found, probe(probed))


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
