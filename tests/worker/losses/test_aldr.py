"""Weights of training samples: what a visit changes, over parts of a batch, and in checkpoint and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.recipe.losses import Aldr
from tests.worker.training.builders import finished, require_same_bits, stage
from worker.losses.builder import LossBuilder
from worker.losses.objective import BatchOutputs, Objective

SAMPLES, CLASSES = 9, 5
RECIPE = {"losses": [{"kind": "aldr", "kl_weight": 2.0, "alpha": 3.0}]}


class Kept:
    """A term with the weights of its samples."""

    def __init__(self, spec: Aldr = Aldr()) -> None:
        builder = LossBuilder({}, {}, CLASSES, samples=SAMPLES)
        self.objective = Objective([spec], builder)
        (self.memory,) = builder.aux_modules.double().values()

    @property
    def weights(self) -> Tensor:
        return self.memory.get_buffer("weights").clone()

    def loss(self, logits: Tensor, labels: Tensor, index: Tensor, count: Tensor | None = None) -> Tensor:
        count = self.objective.count(labels) if count is None else count
        return self.objective(BatchOutputs(logits, labels, {}, sample_index=index), count)["loss"]


def draw(rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(rows, CLASSES, generator=random, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(CLASSES, (rows,), generator=random), torch.arange(rows) + 2


@pytest.mark.parametrize("scores", ["logits", "softplus"])
def test_gradient_is_that_of_the_value_at_the_weights_of_this_visit(scores: str) -> None:
    logits, labels, index = draw()
    spec = Aldr.model_validate({"scores": scores, "alpha": 1e12})  # the weights stay
    assert torch.autograd.gradcheck(lambda values: Kept(spec).loss(values, labels, index), logits)


def test_a_visit_changes_the_weights_of_its_samples_alone_and_within_bounds() -> None:
    logits, labels, index = draw()
    kept = Kept(Aldr(kl_weight=2.0, alpha=4.0))
    kept.loss(logits, labels, index)
    visited = kept.weights[2:8]
    assert (kept.weights[[0, 1, 8]] == 2.0).all()
    assert (visited <= 2.0).all()
    assert (visited > 2.0 * (1.0 - 1.0 / 4.0)).all()
    certain, even = torch.zeros(1, CLASSES, dtype=torch.float64), torch.ones(1, CLASSES, dtype=torch.float64)
    certain[0, 1] = 50.0
    for values in (certain, even):
        kept.loss(values, torch.tensor([1]), torch.tensor([0 if values is certain else 1]))
    assert kept.weights[0] < visited.min() < 2.0
    torch.testing.assert_close(kept.weights[1], torch.tensor(2.0, dtype=torch.float64))


def test_masked_rows_change_neither_value_nor_gradient_nor_weights() -> None:
    logits, labels, index = draw()
    kept, alone = Kept(), Kept()
    masked = torch.cat((labels[:4], torch.tensor([-100, -100])))
    value, expected = kept.loss(logits, masked, index), alone.loss(logits[:4], labels[:4], index[:4])
    torch.testing.assert_close(value, expected)
    (found,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(found, torch.autograd.grad(expected, logits)[0])
    torch.testing.assert_close(kept.weights, alone.weights)
    nothing = Kept().loss(logits, torch.full_like(labels, -100), index)
    assert float(nothing.detach()) == 0.0
    assert not torch.autograd.grad(nothing, logits)[0].any()


def test_parts_of_a_batch_have_its_loss_and_leave_its_weights() -> None:
    logits, labels, index = draw()
    whole, parts = Kept(), Kept()
    count = whole.objective.count(labels)
    expected = whole.loss(logits, labels, index)
    found = sum(parts.loss(logits[part], labels[part], index[part], count) for part in (slice(4), slice(4, 6)))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts.weights, whole.weights, rtol=0, atol=0)


def test_huge_and_equal_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0, 1.0], [0.0] * 5, [-300.0] * 5], requires_grad=True)
    for spec in (Aldr(), Aldr(scores="softplus")):
        loss = Kept(spec).loss(logits, torch.tensor([1, 0, 2]), torch.arange(3))
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_a_job_reports_its_weights_and_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    bundle = finished(tmp_path / "job", stage(tmp_path / "job", recipe=RECIPE))
    figures = json.loads((bundle / "report.json").read_text())["train"]["losses"]["aldr"]
    assert list(figures) == ["mean", "min", "max", "q05", "q50", "q95"]
    assert 2.0 * (1.0 - 1.0 / 3.0) < figures["min"] <= figures["q05"] <= figures["q50"] <= figures["q95"]
    assert figures["q95"] <= figures["max"] <= 2.0
    assert figures["min"] < figures["max"]
    require_same_bits(lambda folder: stage(folder, recipe=RECIPE), tmp_path)
    reports = [json.loads((tmp_path / name / "bundle" / "report.json").read_text()) for name in ("straight", "halting")]
    assert reports[0]["train"]["losses"] == reports[1]["train"]["losses"]
