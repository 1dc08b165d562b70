"""Losses of two classes: metrics of a batch and drawn gradients, over parts, processes and masked rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, fbeta_score
from torch import Tensor

from app.recipe.losses import AnyLoss, EnsLoss, Loss
from tests import kinds
from tests.worker.training.builders import play, require_same_bits
from worker.errors import UserError
from worker.losses import build_term
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.ensloss import drawn_derivatives
from worker.losses.objective import BatchOutputs, Objective
from worker.protocol import Assignment, Finished

METRICS = ["accuracy", "f-beta", "g-mean", "squared-g-mean", "balanced-accuracy"]
SPECS: list[Loss] = [
    *(AnyLoss.model_validate({"metric": metric, "amplification": 5.0, "beta": 2.0}) for metric in METRICS),
    AnyLoss(positive=0, amplification=3.0),
    EnsLoss(),
]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: getattr(spec, "metric", spec.kind))


def draw(rows: int = 12) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 2, generator=random, dtype=torch.float64)
    return logits.requires_grad_(), torch.arange(rows) % 3 // 2


def share(spec: Loss, logits: Tensor, targets: Tensor, epoch: float = 0.0) -> Tensor:
    objective = Objective([spec], LossBuilder({}, {}, 2, seed=5))
    return objective(BatchOutputs(logits, targets, {}), objective.count(targets), epoch)["loss"]


@pytest.mark.parametrize("spec", SPECS[:-1], ids=lambda spec: spec.metric)
def test_gradient_is_that_of_the_metric(spec: Loss) -> None:
    logits, labels = draw()
    assert torch.autograd.gradcheck(lambda values: share(spec, values, labels), logits)


@every_spec
def test_masked_rows_change_nothing(spec: Loss) -> None:
    logits, labels = draw()
    more = torch.cat((logits.detach(), torch.tensor([[1e30, -1e30], [0.0, 0.0]]))).requires_grad_()
    masked = torch.cat((labels, torch.tensor([-100, -100])))
    (found,) = torch.autograd.grad(share(spec, more, masked), more)
    assert not found[-2:].any()
    if isinstance(spec, AnyLoss):
        torch.testing.assert_close(share(spec, more, masked), share(spec, logits, labels))
        torch.testing.assert_close(found[:-2], torch.autograd.grad(share(spec, logits, labels), logits)[0])
    nothing = share(spec, more, torch.full_like(masked, -100))
    assert float(nothing.detach()) == 0.0
    assert not torch.autograd.grad(nothing, more)[0].any()


@every_spec
def test_half_precision_and_huge_logits_stay_finite(spec: Loss) -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    value = share(spec, logits, torch.tensor([1, 0, 1]))
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize("metric", METRICS)
def test_a_steep_amplification_gives_the_metric_of_hard_predictions(metric: str) -> None:
    logits, labels = draw(200)
    spec = AnyLoss.model_validate({"metric": metric, "beta": 2.0, "amplification": 1e9, "smoothing": 0.0})
    found, predicted = 1.0 - share(spec, logits, labels).detach(), logits.argmax(1)
    recalls = [float((predicted[labels == one] == one).double().mean()) for one in (0, 1)]
    expected = {
        "accuracy": float((predicted == labels).double().mean()),
        "f-beta": fbeta_score(labels, predicted, beta=2.0),
        "g-mean": (recalls[0] * recalls[1]) ** 0.5,
        "squared-g-mean": recalls[0] * recalls[1],
        "balanced-accuracy": balanced_accuracy_score(labels, predicted),
    }
    assert float(found) == pytest.approx(expected[metric], abs=1e-9)


@pytest.mark.parametrize("metric", METRICS[1:])
@pytest.mark.parametrize("label", [0, 1])
def test_a_batch_without_a_class_that_counts_has_no_gradient(metric: str, label: int) -> None:
    logits, _ = draw()
    loss = share(AnyLoss.model_validate({"metric": metric}), logits, torch.full((12,), label))
    (found,) = torch.autograd.grad(loss, logits)
    skipped = metric != "f-beta" or label == 0
    assert bool(found.any()) is not skipped
    assert (float(loss.detach()) == 0.0) is skipped


@pytest.mark.parametrize("metric", METRICS)
def test_shares_of_two_processes_add_up_to_the_whole_batch(metric: str) -> None:
    """Each sees the sums of both; their losses and gradients add up to those of one process."""
    spec, (logits, labels) = AnyLoss.model_validate({"metric": metric, "amplification": 5.0}), draw()
    parts = (slice(5), slice(5, 12))
    own = build_term(spec, LossBuilder({}, {}, 2))
    sums = sum(own.counts(LossInputs(logits[part], labels[part], None)).detach().sum(0) for part in parts)  # type: ignore[attr-defined]
    builder = LossBuilder({}, {}, 2, everywhere=lambda _: sums.clone())  # type: ignore[union-attr]
    shares = []
    for part in parts:
        objective = Objective([spec], builder)
        count = objective.count(labels)
        shares.append(objective(BatchOutputs(logits[part], labels[part], {}), count)["loss"])
    whole = share(spec, logits, labels)
    torch.testing.assert_close(shares[0] + shares[1], whole)
    expected = torch.autograd.grad(whole, logits)[0]
    torch.testing.assert_close(torch.autograd.grad(shares[0] + shares[1], logits)[0], expected)


def test_drawn_derivatives_are_those_of_a_calibrated_convex_loss() -> None:
    margins = torch.linspace(-4.0, 6.0, 41, dtype=torch.float64)
    shuffled = margins[torch.randperm(41, generator=torch.Generator().manual_seed(0))]
    draws = torch.randn(41, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for exponent in (-0.9, -0.5, 0.0, 0.5, 0.9):
        found = drawn_derivatives(shuffled, draws, exponent)[shuffled.argsort()]
        assert (found < 0.0).all()
        assert (found >= -1.0 - 2e-6).all()
        assert (found.diff() >= 0.0).all()


def test_draws_depend_on_seed_and_step_and_the_exponent_on_the_period() -> None:
    logits, labels = draw()
    spec = EnsLoss(period=2)
    gradients = [torch.autograd.grad(share(spec, logits, labels, at), logits)[0] for at in (0.0, 0.0, 0.25, 2.0)]
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[0].sum(1), torch.zeros(12, dtype=torch.float64))
    term: Any = build_term(EnsLoss(period=2), LossBuilder({}, {}, 2, seed=5))
    assert term._exponent(1.99) == 0.0
    later = [term._exponent(epoch) for epoch in (2.0, 3.5, 4.0)]
    assert later[0] == later[1] != later[2]
    assert all(-1.0 <= each <= 1.0 for each in later)


@pytest.mark.parametrize("spec", [AnyLoss(), EnsLoss()], ids=lambda spec: spec.kind)
def test_other_numbers_of_classes_are_refused_when_it_is_built(spec: Loss) -> None:
    with pytest.raises(UserError, match=f"{spec.kind} is not for 3 classes; accepted: 2 classes"):
        Objective([spec], LossBuilder({}, {}, 3))


def assignment(folder: Path, kind: str) -> Assignment:
    folder.mkdir(parents=True, exist_ok=True)
    kinds.write_data(folder)
    job = {**kinds.job_of(kind), "student": {"architecture": "mlp", "hidden": [8]}}
    train = kinds.BINARY["train"]
    return Assignment.model_validate({"spec": job, "inputs": {train: f"{train}.npz"}})


@pytest.mark.parametrize("kind", ["anyloss", "ensloss"])
def test_a_job_is_resumed_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    require_same_bits(lambda folder: assignment(folder, kind), tmp_path)


def test_a_job_that_finds_more_classes_in_its_data_is_refused(tmp_path: Path) -> None:
    found = assignment(tmp_path, "anyloss")
    data = found.spec.data.model_copy(update={"train": "classes", "classes": None})
    spec = found.spec.model_copy(update={"data": data})
    word: Any = play(Assignment(spec=spec, inputs={"classes": "classes.npz"}), tmp_path).word
    assert not isinstance(word, Finished)
    assert "anyloss is not for 10 classes" in word.message
