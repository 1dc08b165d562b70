"""Samples that are moved across the teacher's decision boundary."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from app.recipe.methods.boundary_samples import BoundarySamples
from app.recipe.students.architectures import Mlp
from tests.worker.training.builders import (
    CLASSES,
    Played,
    document,
    play,
    require_same_bits,
    require_same_bits_after_death,
    stage,
)
from tests.worker.training.test_loop import prepare
from worker.data.randomness import generator
from worker.methods.boundary_samples import (
    NOT_BASE,
    BoundaryCounter,
    BoundaryStep,
    base_scores,
    choose_base,
    draw_classes,
    soft_cross_entropy,
)
from worker.protocol import Assignment, Failed, Finished, Metrics
from worker.students.model import Model
from worker.students.weights import load_model
from worker.training.loop import Stage, set_rate
from worker.training.stages import begin_stage, wrap_learners
from worker.training.state import TrainState, fresh_student

METHOD: dict[str, Any] = {"kind": "boundary-samples", "clip": [-2.5, 2.5]}
LABELS: list[dict[str, Any]] = [{"kind": "cross-entropy"}]
SGD = {"kind": "sgd", "lr": 0.1}
RECIPE: dict[str, Any] = {"losses": LABELS, "method": METHOD, "epochs": 4, "batch_size": 16, "optimizer": SGD}
STEPS, LR, EPOCHS = 5, 0.1, 4


def scene(method: dict[str, Any], **settings: Any) -> tuple[Stage, TrainState, Model]:
    """A stage in float64 before its first step, and the teacher, which is right about every sample; the student begins
    close to it."""
    stage, state = prepare(student=Mlp(hidden=[16]), method={**METHOD, **method}, epochs=EPOCHS, **settings)
    teacher = fresh_student(state.student.config, 7).double().eval()
    state.student.double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for own, other in zip(state.student.parameters(), teacher.parameters(), strict=True):
            other *= 2
            own.copy_(other / 2 + 0.05 * torch.randn(own.shape, generator=random))
        stage.batches.samples.targets.copy_(teacher(stage.batches.samples.inputs["images"]).argmax(-1))
    state.method = BoundaryCounter()
    wrap_learners(state, stage.ranks)
    begin_stage(stage, state)
    return stage, state, teacher


def take(stage: Stage, state: TrainState, teacher: Model, steps: int) -> list[dict[str, Tensor]]:
    assert isinstance(stage.recipe.method, BoundarySamples)
    step, found = BoundaryStep(stage.recipe.method, teacher), []
    for number in range(steps):
        set_rate(stage, state)
        found.append(step(stage, state, stage.step_inputs(number)))
        state.step += 1
    return found


def moved(teacher: Model, image: Tensor, base: int, target: int, spec: BoundarySamples) -> Tensor:
    """One image (C, H, W), as the paper has it."""
    for _ in range(spec.steps):
        image = image.detach().requires_grad_()
        logits = teacher(image.unsqueeze(0))[0]
        if int(logits.argmax()) != base:
            break
        difference = logits[base] - logits[target]
        (gradient,) = torch.autograd.grad(-difference, image)
        step = spec.alpha * (difference.item() + 1e-4) * gradient / gradient.square().sum().sqrt()
        image = (image + step).clamp(-2.5, 2.5)
    return image.detach()


def plain_loss(
    student: Model, teacher: Model, images: Tensor, labels: Tensor, step: int, spec: BoundarySamples
) -> tuple[Tensor, int]:
    """The loss, and how many samples were moved."""
    epoch = 1 + step // 3
    a, b = 1 + 3 * max(1 - epoch / EPOCHS, 0), 2 * max(1 - 4 / 3 * epoch / EPOCHS, 0)
    z, t = student(images), teacher(images).detach()

    def imitation(own: Tensor, other: Tensor) -> Tensor:
        return -((other / spec.temperature).softmax(-1) * (own / spec.temperature).softmax(-1).log()).sum(-1).mean()

    loss = F.cross_entropy(z, labels) + a * imitation(z, t)
    base = [row for row, y in enumerate(labels.tolist()) if int(z[row].argmax()) == int(t[row].argmax()) == y]
    p, q = t.softmax(-1), z.detach().softmax(-1)

    def score(row: int) -> float:
        return sum(float(p[row, c] - q[row, c]) ** 2 for c in range(p.shape[1]) if c != int(labels[row]))

    chosen = sorted(base, key=score, reverse=True)[: spec.attack_size]
    uniform = torch.rand(len(images), generator=generator(0, "boundary", step)).double()
    found = []
    for row in chosen if b else ():
        others = sorted((c for c in range(p.shape[1]) if c != int(labels[row])), key=lambda c: -float(p[row, c]))
        threshold, mass, target = float(uniform[row] * p[row, others].sum()), 0.0, others[0]
        for target in others:
            mass += float(p[row, target])
            if mass >= threshold:
                break
        found.append(moved(teacher, images[row].double(), int(labels[row]), target, spec))
    if found:
        there = torch.stack(found).float()  # preprocessing computes in float32
        exact = teacher.network(torch.stack(found)).detach()
        loss = loss + b * imitation(student(there), exact)
    return loss, len(found)


@pytest.mark.parametrize("attack_size", [1, 2, 64])
def test_the_weights_are_those_of_the_paper_s_steps(attack_size: int) -> None:
    settings = {"attack_size": attack_size, "temperature": 2.5, "alpha": 0.2}
    stage, state, teacher = scene(settings, accumulate=3)
    plain, expected = scene(settings)[1].student, []
    spec = stage.recipe.method
    assert isinstance(spec, BoundarySamples)
    for number in range(STEPS):
        batch = stage.batches.at(number)
        loss, count = plain_loss(plain, teacher, batch.inputs["images"], batch.targets, number, spec)
        expected.append(count)
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(plain.parameters(), gradients, strict=True):
                weight -= LR * gradient
    found = take(stage, state, teacher, STEPS)
    assert [int(values["boundary/moved"]) for values in found] == expected
    assert 0 < max(expected) <= attack_size
    for own, other in zip(state.student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-9)


def test_weights_change_from_epoch_to_epoch_and_nothing_is_moved_at_the_end() -> None:
    stage, state, teacher = scene({})
    found = take(stage, state, teacher, 12)
    assert [round(float(values["boundary/kd_weight"]), 6) for values in found[::3]] == [3.25, 2.5, 1.75, 1.0]
    assert [round(float(values["boundary/bss_weight"]), 6) for values in found[::3]] == [1.333333, 0.666667, 0.0, 0.0]
    assert ["loss/boundary" in values for values in found] == [True] * 6 + [False] * 6
    for values in found[:6]:
        assert 0 <= values["boundary/crossed"] <= values["boundary/moved"] <= values["boundary/base"] <= 10
        terms = values["loss/cross-entropy"] + values["boundary/kd_weight"] * values["loss/imitation"]
        total = terms + values["boundary/bss_weight"] * values["loss/boundary"]
        assert float(values["loss"]) == pytest.approx(float(total), rel=1e-6)


def test_samples_without_a_gradient_are_left_out() -> None:
    stage, state, teacher = scene({})
    with torch.no_grad():
        for weight in list(teacher.parameters())[:1]:
            weight.zero_()  # of the first layer: no input changes an output
        classes = stage.batches.samples.targets
        classes.fill_(int(teacher(torch.zeros(1, 1, 4, 4)).argmax()))
    found = take(stage, state, teacher, 2)
    assert all(values["boundary/base"] > 0 for values in found)
    assert all(values["boundary/moved"] == values["loss/boundary"] == 0 for values in found)


def test_a_student_that_is_never_right_has_nothing_moved() -> None:
    stage, state, teacher = scene({})
    wrong = (state.student(stage.batches.samples.inputs["images"]).argmax(-1) + 1) % 3
    stage.batches.samples.targets.copy_(wrong)
    (values,) = take(stage, state, teacher, 1)
    assert values["boundary/base"] == values["boundary/moved"] == values["loss/boundary"] == 0


def test_base_samples_are_those_that_both_get_right_and_differ_about_most() -> None:
    teacher = torch.tensor([[4.0, 0, 0], [4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0], [4.0, 3.0, 0]])
    student = torch.tensor([[1.0, 0, 0], [3.0, 0, 0], [0, 1.0, 0], [4.0, 0, 0], [4.0, 0, 3.0]])
    scores = base_scores(student, teacher, torch.tensor([0, 0, 2, 2, 0]))
    assert (scores == NOT_BASE).tolist() == [False, False, True, True, False]
    p, q = teacher.softmax(-1), student.softmax(-1)
    torch.testing.assert_close(scores[0], (p[0, 1:] - q[0, 1:]).square().sum())
    assert choose_base(scores, 3).tolist() == [0, 1, 4]
    assert choose_base(scores, 2).tolist() == [4, 0] if scores[4] > scores[0] else [0, 4]
    assert choose_base(scores, 1).tolist() == [int(scores.argmax())]
    assert base_scores(student, teacher, torch.full((5,), -100)).tolist() == [NOT_BASE] * 5


def test_classes_are_drawn_in_proportion_to_the_teachers_probabilities() -> None:
    logits = torch.tensor([0.7, 0.2, 0.06, 0.04]).log().repeat(4000, 1)
    base = torch.zeros(4000, dtype=torch.int64)
    drawn = draw_classes(logits, base, torch.rand(4000, generator=generator(0, "draws")))
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.2, 0.06, 0.04]) / 0.3, atol=0.03, rtol=0)
    edges = draw_classes(logits[:2], base[:2], torch.tensor([0.0, 1.0]))
    assert edges.tolist() == [1, 3]


def test_a_softened_cross_entropy_survives_large_logits_of_bf16() -> None:
    student = torch.tensor([[1e4, -1e4], [0.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    losses = soft_cross_entropy(student, torch.tensor([[1e4, -1e4], [0.0, 0.0]], dtype=torch.bfloat16), 3.0)
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx([0.0, float((torch.tensor([0.0, 1 / 3]).logsumexp(0)) - 1 / 6)], abs=1e-6)


def staged(folder: Path, **changes: Any) -> Assignment:
    """A job whose teacher is right about every sample."""
    data = {"train": "data", "classes": CLASSES}
    assignment = stage(folder, teacher=True, **{"data": data, "recipe": RECIPE, **changes})
    arrays, teacher = dict(np.load(folder / "data.npz")), load_model(folder / "teacher").eval()
    with torch.no_grad():
        classes = teacher(torch.from_numpy(arrays["x"]).unsqueeze(1)).argmax(-1)
    np.savez(folder / "data.npz", x=arrays["x"], y=classes.numpy())
    return assignment


def ran(folder: Path, **changes: Any) -> Played:
    played = play(staged(folder, **changes), folder)
    assert isinstance(played.word, Finished), played.word
    return played


def report(folder: Path) -> Any:
    return json.loads((folder / "bundle" / "report.json").read_text())


@pytest.mark.parametrize(
    "recipe",
    [{}, {"ema_decay": 0.8, "optimizer": {"kind": "adamp", "lr": 0.01}, "schedule": {"kind": "cosine"}}],
    ids=["plain", "averaged"],
)
def test_a_job_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path, recipe: dict[str, Any]) -> None:
    make = partial(staged, recipe={**RECIPE, **recipe})
    require_same_bits(make, tmp_path)
    straight, halting = (report(tmp_path / name)["train"] for name in ("straight", "halting"))
    assert straight["boundary"] == halting["boundary"]
    assert straight["boundary"]["moved"] > 0
    assert straight["teacher_flops"] == halting["teacher_flops"]


def test_a_death_between_two_steps_repeats_those_since_the_checkpoint(tmp_path: Path) -> None:
    recipe = {**RECIPE, "checkpoint": {"every_steps": 2}}
    require_same_bits_after_death(partial(staged, recipe=recipe), BoundaryStep, tmp_path)
    assert report(tmp_path / "cut")["train"]["boundary"] == report(tmp_path / "straight")["train"]["boundary"]


def test_everything_is_measured_counted_and_reported(tmp_path: Path) -> None:
    small = [4, 4]
    network = {"architecture": "cifar-resnet", "depth": 8, "width": 2}
    played = ran(tmp_path, student=network, student_image_size=small, recipe={**RECIPE, "precision": "bf16"})
    values = {name: value for metrics in played.of(Metrics) for name, value in metrics.values.items()}
    for name in ("loss/imitation", "loss/boundary", "boundary/base", "boundary/moved", "boundary/crossed"):
        assert f"train/{name}" in values
    found = report(tmp_path)
    train, samples, boundary = found["train"], found["samples"]["train"], found["train"]["boundary"]
    assert 0 < boundary["crossed"] <= boundary["moved"]
    assert boundary["crossed_share"] == boundary["crossed"] / boundary["moved"]
    assert train["student_flops"] >= (4 * samples + boundary["moved"]) * 3 * found["student"]["flops"]
    once = 4 * samples + boundary["moved"]
    assert train["teacher_flops"] > (once + 2 * boundary["moved"]) * found["teacher"]["flops"]
    assert values["train/flops/teacher"] == train["teacher_flops"]
    assert (
        f"- {boundary['moved']:,} samples at the teacher's decision boundary"
        in (tmp_path / "bundle" / "README.md").read_text()
    )


def test_the_pixels_range_is_the_default_and_other_samples_need_one(tmp_path: Path) -> None:
    recipe = {**RECIPE, "method": {"kind": "boundary-samples"}}
    ran(tmp_path / "pixels", recipe=recipe)
    assignment = staged(tmp_path / "numbers", recipe=recipe)
    arrays = dict(np.load(tmp_path / "numbers" / "data.npz"))
    np.savez(tmp_path / "numbers" / "data.npz", x=arrays["x"].astype(np.float32) - 100, y=arrays["y"])
    word = play(assignment, tmp_path / "numbers").word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "recipe.method.clip")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"teacher": None}, "teacher"),
        ({"teacher": None, "teachers": [{"model": "a", "name": "a"}, {"model": "b", "name": "b"}]}, "teachers"),
        ({"teacher": {"model": "a", "precision": "bf16"}}, "teacher.precision"),
        ({"teacher": None, "teachers": [{"model": "a", "precision": "fp8"}]}, "teachers[0].precision"),
        ({"recipe": {**RECIPE, "epochs": 1}}, "recipe.method.bss_weight"),
        (
            {"recipe": {**RECIPE, "method": {**METHOD, "bss_weight": {"first": 0, "last": 0}}}},
            "recipe.method.bss_weight",
        ),
        ({"recipe": {**RECIPE, "compile": True}}, "recipe.compile"),
        ({"resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}}, "resources.sharding"),
        ({"task": "text-classification"}, "recipe.method.kind"),
        ({"task": "multi-label-classification"}, "recipe.method.kind"),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    job = JobSpec.model_validate({**document(recipe=RECIPE), "teacher": {"model": "a"}, **changes})
    assert field in [problem.param for problem in find_problems(job)]


def test_a_plain_job_of_it_has_no_problem() -> None:
    job = JobSpec.model_validate({**document(recipe=RECIPE), "teacher": {"model": "a"}})
    assert find_problems(job) == []


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"attack_size": 0},
            {"steps": 0},
            {"alpha": 0.0},
            {"temperature": 0.0},
            {"clip": [1.0, 1.0]},
            {"clip": [1.0]},
        ),
        {"kd_weight": {"first": 1.0, "last": 0.0, "until": 0.0}},
    ],
)
def test_values_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BoundarySamples.model_validate({**METHOD, **changes})
