"""UNPG against all pairs at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import NormFace, Unpg
from tests.worker.live_memory import peak_bytes
from tests.worker.losses.test_class_vectors import draw, gradient, term_of
from worker.losses import unpg
from worker.losses.base import LossInputs
from worker.losses.class_vectors import cosines_with
from worker.losses.unpg import UnpgTerm, Whiskers, count_of_pairs, pair_parts, whiskers_of

SPECS = [
    Unpg(scale=8.0, whiskers=0.5, margin="none"),
    Unpg(whiskers=0.0, margin="none"),
    Unpg(scale=1000.0, whiskers=100.0, margin="none"),
]


def of_all_pairs(spec: Unpg, weights: Tensor, inputs: LossInputs) -> Tensor:
    """The same with all pairs in memory, without a margin."""
    valid = torch.ones_like(inputs.labels) > 0 if inputs.valid is None else inputs.valid
    different = (inputs.labels.unsqueeze(1) != inputs.labels) & valid & valid.unsqueeze(1)
    directions = F.normalize(inputs.student, dim=-1)
    pairs = (directions @ directions.mT)[different.triu(1)]
    rising = pairs.detach().sort().values
    low, high = rising[int(0.25 * len(rising))], rising[int(0.75 * len(rising))]
    kept = (pairs >= low - spec.whiskers * (high - low)) & (pairs <= high + spec.whiskers * (high - low))
    logits = torch.cat((cosines_with(inputs.student, weights), pairs[kept].expand(len(different), -1)), 1)
    return F.cross_entropy(spec.scale * logits, inputs.labels, reduction="none")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("at_once", [1, 64, 2**20])
def test_value_and_gradients_are_those_of_all_pairs_however_many_are_computed_at_a_time(
    monkeypatch: pytest.MonkeyPatch, spec: Unpg, at_once: int
) -> None:
    monkeypatch.setattr(unpg, "AT_ONCE", at_once)
    term = term_of(spec)
    assert isinstance(term, UnpgTerm)
    weights, upstream = term.vectors.weight, torch.linspace(0.5, 2.0, 24, dtype=torch.float64)
    for valid in (None, torch.arange(24) % 5 > 0):
        rows = draw(24)._replace(valid=valid)
        found, expected = term(rows), of_all_pairs(spec, weights, rows)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
        sides = [torch.autograd.grad(each, (rows.student, weights), upstream) for each in (found, expected)]
        torch.testing.assert_close(sides[0], sides[1], rtol=1e-9, atol=1e-10 * spec.scale)


def test_pairs_of_the_batch_raise_the_loss_and_one_class_has_none() -> None:
    rows = draw(8)
    plain = NormFace(scale=8.0, learn_scale=False, margin="arcface")
    assert (term_of(Unpg(scale=8.0))(rows) > term_of(plain)(rows)).all()
    single = rows._replace(labels=torch.ones(8, dtype=torch.int64))
    torch.testing.assert_close(term_of(Unpg(scale=8.0))(single), term_of(plain)(single))
    assert gradient(term_of(Unpg(scale=8.0)), single).isfinite().all()


def test_outliers_are_left_out_by_the_quartiles() -> None:
    """Eight pairs with one vector: seven cosines rise evenly, and one is far above."""
    cosines = torch.tensor([0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.9], dtype=torch.float64)
    others = torch.stack((cosines, (1.0 - cosines.square()).sqrt()), 1)
    directions = torch.cat((torch.tensor([[1.0, 0.0]], dtype=torch.float64), others))
    labels, valid = torch.tensor([0] + [1] * 8), torch.ones(9, dtype=torch.bool)
    count = count_of_pairs(labels, valid)
    kept = {factor: whiskers_of(directions, labels, valid, count, factor).hold(cosines) for factor in (0.0, 1.5, 100.0)}
    assert count == 8
    assert kept[0.0].tolist() == [False] * 2 + [True] * 5 + [False]
    assert kept[1.5].tolist() == [True] * 7 + [False]
    assert kept[100.0].all()


def test_every_pair_of_valid_rows_of_different_classes_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpg, "AT_ONCE", 30)
    labels, valid = torch.tensor([0, 1, 1, 3, 0, 3, 1, 2, 0, 2]), torch.arange(10) != 4
    directions = F.normalize(torch.randn(10, 3, dtype=torch.float64), dim=1)
    expected = sorted(
        float(directions[i] @ directions[j])
        for i in range(10)
        for j in range(i + 1, 10)
        if labels[i] != labels[j] and valid[i] and valid[j]
    )
    found = torch.cat([part.cosines[part.counted] for part in pair_parts(directions, labels, valid)]).sort().values
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert count_of_pairs(labels, valid) == len(expected)


def test_limits_count_as_inside() -> None:
    whiskers = Whiskers(torch.tensor(-0.5), torch.tensor(0.5), torch.tensor(0.5))
    assert whiskers.hold(torch.tensor([-0.6, -0.5, 0.0, 0.5, 0.6])).tolist() == [False, *[True] * 3, False]


def test_memory_is_that_of_some_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many rows take little more than twice the memory beside that of the part, not four times; all pairs
    would take it."""
    monkeypatch.setattr(unpg, "AT_ONCE", 2**12)

    def peak(rows: int) -> tuple[int, int]:
        term, inputs = term_of(SPECS[0]), draw(rows)
        assert isinstance(term, UnpgTerm)
        step = lambda loss: torch.autograd.grad(loss.sum(), inputs.student)  # noqa: E731
        alone = peak_bytes(lambda: step(term(inputs)))
        return alone, peak_bytes(lambda: step(of_all_pairs(SPECS[0], term.vectors.weight, inputs)))

    (few, few_whole), (many, many_whole) = peak(256), peak(512)
    assert many < 2.5 * few
    assert many < 0.05 * many_whole
    assert many_whole > 3.5 * few_whole
