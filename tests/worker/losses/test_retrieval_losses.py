"""Losses of queries with candidates, compared with direct formulas."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from app.recipe.losses import LgAnna, Loss, Mw, UniMe
from tests.worker.losses.lists import Lists, draw_lists
from worker.data.pairs import PADDING, ROLE, SCORE
from worker.losses import TERMS, retrieval
from worker.losses.retrieval import mann_whitney

SPECS: list[Loss] = [
    Mw(temperature=0.3),
    Mw(temperature=0.3, per_query=True),
    UniMe(temperature=0.2),
    UniMe(temperature=0.2, judge_temperature=0.1),
    UniMe(target="teacher", temperature=0.2),
    LgAnna(temperature=0.2),
    LgAnna(keep="ratio", ratio=0.9, soft_weight=0.5),
    LgAnna(relevance="teacher", margin=0.1),
]


def loss_of(spec: Loss, lists: Lists) -> Tensor:
    """The loss of each sample, which all of its rows have."""
    found: Tensor = TERMS[type(spec)](spec)(lists.inputs).view(lists.samples, -1)
    assert (found == found[:, :1]).all()
    return found[:, 0]


def cosines(vectors: Tensor, lists: Lists) -> Tensor:
    """(Q, Q, n) of each query with all rows of all samples."""
    unit = F.normalize(vectors, dim=1)
    return (unit[:: lists.size] @ unit.T).view(lists.samples, lists.samples, lists.size)


@pytest.mark.parametrize("spec", SPECS)
def test_the_gradient_is_that_of_the_value(spec: Loss) -> None:
    lists = draw_lists([3, 1, 4], [2, 1, 1])
    assert torch.autograd.gradcheck(lambda student: loss_of(spec, lists._replace(student=student)), lists.student)


@pytest.mark.parametrize("spec", SPECS)
@given(scale=st.floats(0.01, 100.0), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_neither_length_of_vectors_nor_order_of_queries_counts(spec: Loss, scale: float, seed: int) -> None:
    lists = draw_lists([2, 2, 2, 2], seed=seed)
    order = torch.tensor([2, 0, 3, 1])
    rows = (order.unsqueeze(1) * lists.size + torch.arange(lists.size)).flatten()
    moved = Lists(scale * lists.student[rows], lists.teacher[rows], lists.labels[rows], lists.size)
    torch.testing.assert_close(loss_of(spec, moved), loss_of(spec, lists)[order], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_vectors_stay_finite(spec: Loss, dtype: torch.dtype) -> None:
    lists = draw_lists([3, 1])
    student = torch.zeros_like(lists.student, dtype=dtype)
    student[1:3], student[3] = 1e4, -1e4
    inputs = lists.inputs._replace(student=student.requires_grad_(), labels=lists.labels.float())
    loss = TERMS[type(spec)](spec)(inputs._replace(teacher=lists.teacher.to(dtype)))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_a_query_without_negatives_has_no_gradient(spec: Loss) -> None:
    lists = draw_lists([1])
    loss = loss_of(spec, lists)
    (gradient,) = torch.autograd.grad(loss.sum(), lists.student)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-7)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)


def plain_mw(lists: Lists, temperature: float, per_query: bool) -> Tensor:
    """All pairs, one by one."""
    found, roles, texts = cosines(lists.student, lists), *lists.labels[:, [2, 1]].T.view(2, lists.samples, -1)
    positives, negatives = [], []
    for query in range(lists.samples):
        own = {float(texts[query, row]) for row in range(lists.size) if roles[query, row] in (0, 1)}
        positives.append([found[query, query, row] for row in range(lists.size) if roles[query, row] == 1])
        negatives.append(
            [
                found[query, sample, row]
                for sample in range(lists.samples)
                for row in range(lists.size)
                if roles[sample, row] in (1, 2) and float(texts[sample, row]) not in own
            ]
        )
    if not per_query:
        positives, negatives = [list(chain(*positives))], [list(chain(*negatives))]
    means = [
        torch.stack([F.softplus((n - p) / temperature) for p in right for n in wrong]).mean()
        for right, wrong in zip(positives, negatives, strict=True)
        if right and wrong
    ]
    return torch.stack(means).mean()


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("at_once", [1, 7, 2**20])
def test_mw_compares_all_pairs_however_many_at_a_time(
    monkeypatch: pytest.MonkeyPatch, per_query: bool, at_once: int
) -> None:
    """A negative of the first sample is a positive of the second, a negative of the third its own query."""
    monkeypatch.setattr(retrieval, "AT_ONCE", at_once)
    lists = draw_lists([3, 2, 4], [2, 1, 1])
    n = lists.size
    lists.labels[3, 1] = lists.labels[n + 1, 1]
    lists.labels[2 * n + 2, 1] = lists.labels[2 * n, 1]
    expected = plain_mw(lists, 0.3, per_query)
    found = loss_of(Mw(temperature=0.3, per_query=per_query), lists)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    both = (torch.autograd.grad(each, lists.student, retain_graph=True)[0] for each in (found, expected))
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-13)


@given(seed=st.integers(0, 999), positives=st.integers(1, 9), negatives=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_mw_bounds_the_area_above_the_curve_and_depends_on_differences_alone(
    seed: int, positives: int, negatives: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    p, n = (torch.randn(1, count, generator=random, dtype=torch.float64) for count in (positives, negatives))
    loss = mann_whitney(p, n)
    above = (p < n.T).double().mean() + 0.5 * (p == n.T).double().mean()
    assert float(above) <= float(loss) / math.log(2.0)
    torch.testing.assert_close(mann_whitney(p + 3.0, n + 3.0), loss)


def test_mw_of_pairs_compares_each_with_the_texts_of_the_others() -> None:
    lists = draw_lists([1, 1, 1])
    torch.testing.assert_close(loss_of(Mw(temperature=0.3), lists)[0], plain_mw(lists, 0.3, False))


def rows_of(lists: Lists, sample: int) -> Tensor:
    """The candidates of a sample."""
    roles = lists.labels[:, ROLE].view(lists.samples, -1)[sample]
    return (roles[1:] != PADDING).nonzero().squeeze(1) + 1


@pytest.mark.parametrize("target", ["scores", "teacher"])
def test_unime_is_the_mean_of_both_divergences(target: Any) -> None:
    lists = draw_lists([3, 1, 4])
    found = loss_of(UniMe(target=target, temperature=0.2, judge_temperature=0.1), lists)
    student, teacher = (cosines(side, lists) for side in (lists.student, lists.teacher))
    for sample in range(3):
        there = rows_of(lists, sample)
        scores = lists.labels[:, SCORE].view(3, -1)[sample, there]
        labels = scores if target == "scores" else teacher[sample, sample, there]
        p, q = (labels / 0.1).softmax(0), (student[sample, sample, there] / 0.2).softmax(0)
        expected = (p * (p.log() - (q + 1e-8).log()) + q * (q.log() - (p + 1e-8).log())).sum() / 2
        torch.testing.assert_close(found[sample], expected)


def test_lg_anna_leaves_out_what_its_teacher_finds_too_similar() -> None:
    """Further positives are kept, but only in the soft part."""
    lists = draw_lists([4, 4], [2, 1])
    student, teacher = (cosines(side, lists) for side in (lists.student, lists.teacher))
    found = loss_of(LgAnna(temperature=0.2, margin=0.0, soft_weight=0.5), lists)
    left_out = 0
    for sample, positives in enumerate([2, 1]):
        own = teacher[sample, sample]
        kept = [row for row in range(1, 5) if row <= positives or own[row] <= own[1]]
        left_out += 4 - len(kept)
        alone = [row for row in kept if row == 1 or row > positives]
        hard = -(student[sample, sample, alone] / 0.2).log_softmax(0)[0]
        q = (student[sample, sample, kept] / 0.2).log_softmax(0)
        p = (lists.labels[:, SCORE].view(2, -1)[sample, kept] / 0.1).log_softmax(0)
        torch.testing.assert_close(found[sample], hard + 0.5 * (p.exp() * (p - q)).sum())
    assert left_out > 0


def test_a_margin_that_leaves_nothing_has_neither_loss_nor_gradient() -> None:
    lists = draw_lists([3, 2])
    loss = loss_of(LgAnna(margin=5.0), lists)
    (gradient,) = torch.autograd.grad(loss.sum(), lists.student)
    assert loss.tolist() == [0.0, 0.0]
    assert (gradient == 0).all()


@pytest.mark.parametrize("wrong", [{"keep": "ratio", "margin": 0.1}, {"ratio": 0.9}, {"keep": "ratio", "ratio": 1.5}])
def test_a_rule_for_negatives_has_its_own_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LgAnna.model_validate({"kind": "lg-anna", **wrong})
