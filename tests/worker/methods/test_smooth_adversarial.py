"""Students whose margins change little when images are attacked."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from app.recipe.methods.smooth_adversarial import SmoothAdversarial
from tests.worker.training.builders import document, play, require_same_bits, require_same_bits_after_death, stage
from tests.worker.training.test_loop import prepare
from worker.data.batches import Batches
from worker.data.randomness import derive_seed
from worker.methods.smooth_adversarial import SmoothAdversarialStep, smoothness
from worker.protocol import CachePlace, Finished, Metrics
from worker.students.model import Model
from worker.training.loop import set_rate
from worker.training.state import fresh_student

PLAIN: dict[str, Any] = {"kind": "smooth-adversarial", "steps": 4, "step_size": 0.02, "bound": 0.05}
LOSSES = [{"kind": "comp-sum", "tau": 1.5}]
LR = 0.1


def margins(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    logits = model(images)
    return logits.gather(1, labels.unsqueeze(1)) - logits


def change(model: Model, moved: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return (margins(model, moved, labels) - margins(model, images, labels)).square().sum(1).sqrt()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_weights_are_those_of_the_paper_s_steps(accumulate: int) -> None:
    found, state = prepare(None, accumulate=accumulate, losses=LOSSES)
    spec = SmoothAdversarial.model_validate({**PLAIN, "smoothness_weight": 0.7})
    samples = found.batches.samples
    pixels = replace(samples, inputs={"images": samples.inputs["images"].sigmoid()})
    found = replace(found, batches=Batches(pixels, 10, 0))
    state.student.double()
    student = fresh_student(state.student.config, 0).double()
    step = SmoothAdversarialStep(spec)
    for number in range(4):
        batch = found.batches.at(number)
        x, labels = batch.inputs["images"], batch.targets
        random = torch.Generator().manual_seed(derive_seed(0, "attack", number))
        moved = (x + 0.05 * (2 * torch.rand(x.shape, generator=random) - 1)).clamp(0, 1)
        for _ in range(4):
            moved.requires_grad_()
            still = x.detach()
            (gradient,) = torch.autograd.grad(change(student, moved, still, labels).sum(), moved)
            moved = (moved.detach() + 0.02 * gradient.sign()).clamp(x - 0.05, x + 0.05).clamp(0, 1)
        likely = student(x).softmax(-1).gather(1, labels.unsqueeze(1))
        smooth = change(student, moved, x, labels).mean()
        loss = ((likely**0.5 - 1) / -0.5).mean() + 0.7 * smooth
        gradients = torch.autograd.grad(loss, list(student.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(student.parameters(), gradients, strict=True):
                weight -= LR * gradient
        set_rate(found, state)
        values = step(found, state, found.step_inputs(number))
        state.step += 1
        assert float(values["loss/smoothness"]) == pytest.approx(float(smooth.detach()), rel=1e-9)
    for ours, theirs in zip(state.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_smoothness_is_of_rows_that_count_and_has_no_gradient_where_nothing_changes() -> None:
    random = torch.Generator().manual_seed(0)
    clean = torch.randn(5, 3, generator=random, dtype=torch.float64)
    moved = (clean + torch.randn(5, 3, generator=random, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([0, 2, -100, 1, 1])
    found = smoothness(moved, clean, labels)
    assert float(found[2].detach()) == 0.0
    torch.testing.assert_close(smoothness(moved + 7.0, clean, labels), found)  # shifts change no margin
    torch.testing.assert_close(smoothness(3 * moved, 3 * clean, labels), 3 * found)
    assert torch.autograd.gradcheck(lambda other: smoothness(other, clean, labels), (moved,))
    same = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(smoothness(same, clean, labels).sum(), same)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    chosen = torch.nn.functional.one_hot(labels.clamp(min=0), 3).double()
    torch.testing.assert_close(smoothness(moved, clean, chosen)[:2], found[:2])


CASES: dict[str, dict[str, Any]] = {
    "alone": {"recipe": {"method": PLAIN, "losses": LOSSES, "accumulate": 2, "epochs": 2}},
    "taught": {
        "teacher": {"model": "teacher"},
        "data": {"train": "data", "augment": [{"kind": "crop"}, {"kind": "mixup"}], "augment_epochs": 2},
        "recipe": {
            **{"method": {**PLAIN, "random_start": "normal"}, "losses": [{"kind": "cross-entropy"}, {"kind": "kd"}]},
            **{"precision": "bf16", "ema_decay": 0.8, "epochs": 2},
        },
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_job_that_is_stopped_resumes_to_the_same_bits(tmp_path: Path, name: str) -> None:
    require_same_bits(partial(stage, **CASES[name]), tmp_path)


def test_a_death_between_two_steps_repeats_those_since_the_checkpoint(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"recipe": {"method": PLAIN, "checkpoint": {"every_steps": 2}}}
    require_same_bits_after_death(partial(stage, **changes), SmoothAdversarialStep, tmp_path)


def test_everything_is_measured_counted_and_reported(tmp_path: Path) -> None:
    place = CachePlace(folder=str(tmp_path / "answers"))
    asked = stage(tmp_path, recipe={"method": PLAIN, "accumulate": 2}).model_copy(update={"teacher_cache": place})
    played = play(asked, tmp_path)
    assert isinstance(played.word, Finished), played.word
    values = {name: value for metrics in played.of(Metrics) for name, value in metrics.values.items()}
    assert values["train/loss/smoothness"] > 0.0
    total = values["train/loss/cross-entropy"] + values["train/loss/smoothness"]
    assert values["train/loss"] == pytest.approx(total, rel=1e-5)
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    passes = 1 + 4 * 2 + 3 + 3
    assert report["train"]["student_flops"] == 3 * report["samples"]["train"] * passes * report["student"]["flops"]
    assert report["train"]["attack"] == {"steps": 4, "step_size": 0.02, "bound": 0.05, "random_start": "uniform"}


@pytest.mark.parametrize(
    ("changes", "field", "accepted"),
    [
        ({"recipe": {"method": PLAIN}, "task": "text-classification"}, "recipe.method.kind", "image-classification"),
        ({"recipe": {"method": PLAIN, "compile": True}}, "recipe.compile", "false"),
        (
            {"recipe": {"method": PLAIN, "losses": [{"kind": "aldr"}]}},
            "recipe.losses[0].kind",
            "another loss",
        ),
        (
            {"recipe": {"method": PLAIN}, "resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}},
            "resources.sharding",
            "none",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(changes: dict[str, Any], field: str, accepted: str) -> None:
    found = {each.param: each.accepted for each in find_problems(JobSpec.model_validate(document(**changes)))}
    assert accepted in found[field]


@pytest.mark.parametrize(
    ("field", "value"), [("random_start", "none"), ("smoothness_weight", 0.0), ("bound", 2.0), ("steps", 0)]
)
def test_fields_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(document(recipe={"method": {**PLAIN, field: value}}))
    assert field in {error["loc"][-1] for error in refused.value.errors()}
