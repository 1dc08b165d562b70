"""Retrieval, verification and class means of vectors, against the libraries that define them and against loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_hit_rate

from worker.metrics import labelled_vectors as metrics
from worker.metrics.labelled_vectors import chance, class_mean_accuracy, pair_verification, retrieval, verification

RECALL_AT = (1, 5, 10)


def draw(samples: int = 60, classes: int = 6, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=random)
    centres = torch.randn(classes, width, generator=random)
    return centres[labels] + 1.5 * torch.randn(samples, width, generator=random), labels


def cosines(vectors: Tensor) -> Tensor:
    rows = F.normalize(vectors.double(), dim=-1)
    return rows @ rows.T


def test_retrieval_is_that_of_scikit_learn_and_torchmetrics() -> None:
    """The average precision of torchmetrics leaves out what has a negative score."""
    vectors, labels = draw()
    scores, precisions, hits = cosines(vectors), [], []
    for query in range(len(labels)):
        others = torch.arange(len(labels)) != query
        relevant = labels[others] == labels[query]
        precisions.append(average_precision_score(relevant.numpy(), scores[query][others].numpy()))
        hits.append([retrieval_hit_rate(scores[query][others], relevant, top_k=k) for k in RECALL_AT])
    found = retrieval(vectors, labels, RECALL_AT)
    assert float(found["map"]) == pytest.approx(sum(precisions) / len(precisions), rel=1e-12)
    expected = torch.tensor(hits).mean(0)
    for k, value in zip(RECALL_AT, expected.tolist(), strict=True):
        assert float(found[f"recall_at_{k}"]) == pytest.approx(value, rel=1e-6)


def test_precision_at_r_averages_over_as_many_places_as_are_relevant() -> None:
    vectors, labels = draw(40, 4)
    scores, values = cosines(vectors), []
    for query in range(len(labels)):
        order = [place for place in scores[query].argsort(descending=True).tolist() if place != query]
        count = int((labels == labels[query]).sum()) - 1
        right = [bool(labels[place] == labels[query]) for place in order[:count]]
        values.append(sum(sum(right[: place + 1]) / (place + 1) for place in range(count) if right[place]) / count)
    assert float(retrieval(vectors, labels, ())["map_at_r"]) == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_samples_alone_in_their_class_are_no_queries_but_are_found() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    found = retrieval(vectors, torch.tensor([0, 0, 1]), (1,))
    assert float(found["recall_at_1"]) == 0.0
    assert float(found["map"]) == 0.5


def test_equal_vectors_find_nothing_first() -> None:
    found = retrieval(torch.ones(6, 3), torch.tensor([0, 0, 1, 1, 2, 2]), (1, 5))
    assert float(found["recall_at_1"]) == float(found["map_at_r"]) == 0.0
    assert float(found["recall_at_5"]) == 1.0


def test_parts_of_the_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = draw()
    whole = retrieval(vectors, labels, RECALL_AT)
    monkeypatch.setattr(metrics, "AT_ONCE", 200)
    for name, value in retrieval(vectors, labels, RECALL_AT).items():
        torch.testing.assert_close(value, whole[name])


@given(scale=st.floats(0.01, 100.0), seed=st.integers(0, 20))
@settings(max_examples=10, deadline=None)
def test_lengths_and_the_order_of_samples_do_not_count(scale: float, seed: int) -> None:
    vectors, labels = draw(seed=seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    moved = retrieval(scale * vectors[order], labels[order], RECALL_AT)
    assert {name: float(value) for name, value in moved.items()} == pytest.approx(
        {name: float(value) for name, value in retrieval(vectors, labels, RECALL_AT).items()}, rel=1e-6
    )


def test_chance_is_the_mean_over_random_vectors() -> None:
    labels = torch.tensor([0] * 3 + [1] * 6 + [2] * 4 + [3])
    draws = (torch.randn(14, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(400))
    found = [retrieval(vectors, labels, (1,)) for vectors in draws]
    for name, expected in chance(labels).items():
        assert float(torch.stack([each[name] for each in found]).mean()) == pytest.approx(expected, abs=0.02)


def test_verification_is_that_of_scikit_learn() -> None:
    vectors, labels = draw(80)
    one, other = torch.triu_indices(80, 80, offset=1)
    scores, same = cosines(vectors)[one, other].numpy(), (labels[one] == labels[other]).numpy()
    found = verification(vectors, labels, ("1e-2", "1e-1"))
    assert float(found["auc"]) == pytest.approx(roc_auc_score(same, scores), rel=1e-12)
    false, true, _ = roc_curve(same, scores, drop_intermediate=False)
    for rate in ("1e-2", "1e-1"):
        assert float(found[f"tar_at_far_{rate}"]) == pytest.approx(true[false <= float(rate)].max(), rel=1e-12)


def test_there_is_no_verification_without_both_kinds_of_pairs() -> None:
    vectors, _ = draw(4)
    assert verification(vectors, torch.zeros(4, dtype=torch.int64), ("1e-2",)) == {}
    assert verification(vectors, torch.arange(4), ("1e-2",)) == {}


def test_class_means_are_those_of_every_other_sample() -> None:
    vectors, labels = draw(90)
    rows = F.normalize(vectors.double(), dim=-1)
    stored = torch.zeros(len(labels), dtype=torch.bool)
    for number in labels.unique():
        stored[(labels == number).nonzero().flatten()[::2]] = True
    means = {int(number): rows[stored & (labels == number)].mean(0) for number in labels.unique()}
    units = F.normalize(torch.stack(list(means.values())), dim=-1)
    nearest = KNeighborsClassifier(1).fit(units.numpy(), list(means)).predict(rows[~stored].numpy())
    found = class_mean_accuracy(vectors, labels)
    assert found is not None
    assert float(found) == pytest.approx(float((torch.from_numpy(nearest) == labels[~stored]).double().mean()))
    assert class_mean_accuracy(vectors[:3], torch.arange(3)) is None


def test_given_pairs_are_verified_as_scikit_learn_does() -> None:
    random = torch.Generator().manual_seed(3)
    vectors, same = torch.randn(400, 5, generator=random), torch.randint(2, (200,), generator=random)
    vectors[1::2] += same.unsqueeze(1) * vectors[0::2]
    found = pair_verification(vectors, same, ("1e-1", "1e-2"))
    scores = F.cosine_similarity(vectors[0::2].double(), vectors[1::2].double()).numpy()
    assert float(found["auc"]) == pytest.approx(roc_auc_score(same.numpy(), scores))
    for rate in ("1e-1", "1e-2"):
        false, true, _ = roc_curve(same.numpy(), scores, drop_intermediate=False)
        assert float(found[f"tar_at_far_{rate}"]) == pytest.approx(true[false <= float(rate)].max())
    assert pair_verification(vectors, torch.ones(200), ("1e-1",)) == {}
