"""Probes of frozen features: how well simple classifiers of scikit-learn tell classes apart by a model's vectors.

Vectors (N, D) have any floating dtype; classifiers compute in float64 on the CPU, without random draws.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.metrics.labelled_vectors import every_other

MOST = 20_000
"""Samples that are used; of more, so many are taken at equal distances."""
NEIGHBOURS = 5
ROUNDS = 1000


def probes(vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`linear_accuracy` (logistic regression on standardised features), `knn_accuracy` (5 neighbours by the cosine) and
    `bayes_accuracy` (Gaussian naive Bayes), float64 scalars, of vectors with labels (N,) int64; empty if there are not
    two classes, or none has two samples. Of each class every other sample, from the first on, is fitted, and the rest
    is classified."""
    chosen = torch.linspace(0, len(labels) - 1, min(MOST, len(labels)), dtype=torch.float64).round().long()
    rows, numbers = vectors.detach().cpu().double()[chosen], labels.cpu()[chosen]
    place, stored = every_other(numbers)
    if int(place.max()) == 0 or bool(stored.all()):
        return {}
    found = {}
    for name, classifier in _classifiers(int(stored.sum())).items():
        classifier.fit(rows[stored].numpy(), place[stored].numpy())
        right = torch.from_numpy(classifier.predict(rows[~stored].numpy())) == place[~stored]
        found[f"{name}_accuracy"] = right.double().mean()
    return found


def _classifiers(fitted: int) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression  # it takes a second, and most jobs have no probes
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return {
        "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=ROUNDS)),
        "knn": KNeighborsClassifier(min(NEIGHBOURS, fitted), metric="cosine"),
        "bayes": GaussianNB(),
    }
