"""DEXML, compared with direct formulas, and the soft top-k."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.recipe.losses import Dexml
from tests.worker.losses.lists import Lists, draw_lists
from worker.losses import dexml
from worker.losses.dexml import DexmlTerm, log_soft_top_k, soft_top_k

SPECS = [
    *(Dexml(criterion=criterion, temperature=0.3, k=3) for criterion in ("softmax", "decoupled", "bce", "top-k")),
    Dexml(temperature=0.3, weighted=True),
    Dexml(temperature=0.3, left_out="constant"),
]


def lists_with_equal_texts() -> Lists:
    """The first sample's positive is one of the second's, too; the third has the first's negative as its positive, and
    the first's query as a negative."""
    lists = draw_lists([3, 2, 3], [1, 2, 1])
    n = lists.size
    lists.labels[n + 2, 1] = lists.labels[1, 1]
    lists.labels[2 * n + 1, 1] = lists.labels[3, 1]
    lists.labels[2 * n + 2, 1] = lists.labels[0, 1]
    return same_vectors(lists)


def same_vectors(lists: Lists) -> Lists:
    """Equal texts have equal vectors."""
    texts = lists.labels[:, 1]
    first = (texts.unsqueeze(1) == texts).long().argmax(1)
    return lists._replace(student=lists.student.detach()[first].requires_grad_())


def loss_of(spec: Dexml, lists: Lists) -> Tensor:
    found: Tensor = DexmlTerm(spec)(lists.inputs)
    assert (found == found[0]).all()
    return found[0]


def plain(spec: Dexml, lists: Lists) -> Tensor:
    """One query after the other, over the set of texts."""
    unit, (scored, texts, roles) = F.normalize(lists.student, dim=1), lists.labels.T
    documents = {float(texts[row]): row for row in reversed(range(len(texts))) if roles[row] in (1, 2)}
    losses = []
    for query in range(0, len(texts), lists.size):
        own = {float(texts[row]): float(scored[row]) for row in range(query, query + lists.size) if roles[row] == 1}
        labels = [text for text in documents if text in own or text != float(texts[query])]
        scores = torch.stack([unit[query] @ unit[documents[text]] for text in labels]) / spec.temperature
        right = torch.tensor([text in own for text in labels])
        values = [own.get(text, 0.0) if spec.weighted else float(text in own) for text in labels]
        weights = torch.tensor(values, dtype=torch.float64)
        losses.append(of_one(spec, scores, right, weights))
    return torch.stack(losses).mean()


def of_one(spec: Dexml, scores: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    if spec.criterion == "softmax":
        return -(weights * scores.log_softmax(0)).sum()
    if spec.criterion == "bce":
        return F.binary_cross_entropy_with_logits(scores, weights)
    if spec.criterion == "top-k":
        return -(weights * log_soft_top_k(scores.unsqueeze(0), spec.k, spec.alpha)[0]).sum() / right.sum()
    apart = [score - torch.cat([score.unsqueeze(0), scores[~right]]).logsumexp(0) for score in scores]
    return -(weights * torch.stack(apart)).sum() / right.sum()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("at_once", [1, 25, 2**20])
def test_the_labels_are_the_distinct_texts_however_many_queries_at_a_time(
    monkeypatch: pytest.MonkeyPatch, spec: Dexml, at_once: int
) -> None:
    monkeypatch.setattr(dexml, "AT_ONCE", at_once)
    lists = lists_with_equal_texts()
    found, expected = loss_of(spec, lists), plain(spec, lists)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("spec", SPECS)
def test_the_gradient_is_that_of_the_value(spec: Dexml) -> None:
    lists = draw_lists([3, 1, 4], [2, 1, 3])
    assert torch.autograd.gradcheck(lambda student: loss_of(spec, lists._replace(student=student)), lists.student)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("lengths", [[1], [3], [2, 4]])
def test_small_batches_and_extreme_vectors_stay_finite(spec: Dexml, lengths: list[int]) -> None:
    lists = draw_lists(lengths)
    student = (1e4 * lists.student.detach()).float().requires_grad_()
    sharp = spec.model_copy(update={"temperature": 1e-3})
    loss = DexmlTerm(sharp)(lists.inputs._replace(student=student, labels=lists.labels.float())).mean()
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_a_single_text_is_found() -> None:
    lists = draw_lists([1])
    for spec in SPECS:
        if spec.criterion != "bce":
            assert float(loss_of(spec, lists).detach()) == pytest.approx(0.0, abs=1e-3)


@given(seed=st.integers(0, 999), k=st.integers(1, 7), alpha=st.floats(0.5, 5.0))
@settings(max_examples=30, deadline=None)
def test_memberships_add_up_to_k_and_rise_with_the_scores(seed: int, k: int, alpha: float) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 8, generator=random, dtype=torch.float64)
    member = soft_top_k(scores, k, alpha)
    torch.testing.assert_close(member.sum(1), torch.full((3,), float(k), dtype=torch.float64))
    order = scores.argsort(1)
    assert (member.gather(1, order).diff(dim=1) >= 0).all()
    torch.testing.assert_close(soft_top_k(scores + 7.0, k, alpha), member)
    torch.testing.assert_close(log_soft_top_k(scores, k, alpha), member.log())


@pytest.mark.parametrize("member", [soft_top_k, log_soft_top_k])
def test_the_threshold_is_differentiated_too(member: Any) -> None:
    scores = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: member(x, 2, 2.0), scores)


def test_excluded_scores_take_no_part() -> None:
    scores = torch.randn(1, 6, dtype=torch.float64)
    wide = torch.cat([scores, torch.full((1, 2), -torch.inf, dtype=torch.float64)], 1)
    torch.testing.assert_close(soft_top_k(wide, 2, 2.0)[:, :6], soft_top_k(scores, 2, 2.0))
