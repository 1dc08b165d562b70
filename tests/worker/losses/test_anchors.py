"""Losses of anchors do not depend on how many are computed at a time, and their memory is linear in the rows."""

from __future__ import annotations

import pytest
import torch

from app.recipe.losses import Contrastive, Loss, NtXent, SimilarityMatrix
from tests.worker.live_memory import peak_bytes
from tests.worker.losses.lists import draw_lists
from tests.worker.losses.test_embedding_losses import draw, term_of
from worker.losses import anchors
from worker.losses.base import LossInputs

OF_ROWS: list[Loss] = [
    SimilarityMatrix(temperature=0.2, teacher_temperature=0.1),
    SimilarityMatrix(compare="mse"),
    NtXent(projection="none"),
]
OF_TEXTS: list[Loss] = [
    Contrastive(temperature=0.2),
    Contrastive(temperature=0.2, anchors="both", others="all"),
    Contrastive(target="teacher", temperature=0.2, others="all"),
]
CASES = [(spec, draw(6)) for spec in (*OF_ROWS, *OF_TEXTS)]
CASES += [(spec, draw_lists([3, 1, 2, 3], [1, 1, 2, 1]).inputs) for spec in OF_TEXTS]


@pytest.mark.parametrize(("spec", "rows"), CASES)
@pytest.mark.parametrize("at_once", [1, 30, 70])
def test_some_anchors_at_a_time_are_the_whole(
    monkeypatch: pytest.MonkeyPatch, spec: Loss, rows: LossInputs, at_once: int
) -> None:
    upstream = torch.linspace(0.5, 2.0, len(rows.student), dtype=torch.float64)
    whole = term_of(spec)(rows)
    (expected,) = torch.autograd.grad(whole, rows.student, upstream)
    monkeypatch.setattr(anchors, "AT_ONCE", at_once)
    parts = term_of(spec)(rows)
    (found,) = torch.autograd.grad(parts, rows.student, upstream)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", [*OF_ROWS, *OF_TEXTS])
def test_memory_is_that_of_some_comparisons(monkeypatch: pytest.MonkeyPatch, spec: Loss) -> None:
    """Twice as many rows take little more than twice the memory; all comparisons at once take four times as much."""
    monkeypatch.setattr(anchors, "AT_ONCE", 2**12)

    def peak(pairs: int) -> int:
        rows, term = draw(pairs), term_of(spec)
        return peak_bytes(lambda: torch.autograd.grad(term(rows).sum(), rows.student))

    few, many = peak(128), peak(256)
    assert many < 2.5 * few
    monkeypatch.setattr(anchors, "AT_ONCE", 2**30)
    assert peak(256) > 3.5 * peak(128)
    assert peak(256) > 4 * many


def test_without_anchors_there_are_no_losses() -> None:
    assert len(anchors.by_anchor(lambda part: torch.zeros(part.stop - part.start), 0, 0)) == 0
