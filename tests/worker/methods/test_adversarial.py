"""Students that learn from attacked images, alone or from two teachers."""

from __future__ import annotations

import json
from dataclasses import replace
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
from app.recipe.methods.adversarial import Adversarial
from app.recipe.students.architectures import CifarResNet, Student
from tests.worker.training.builders import (
    SAMPLES,
    SIDE,
    Played,
    document,
    play,
    require_same_bits,
    require_same_bits_after_death,
    stage,
)
from tests.worker.training.test_loop import prepare
from worker.data.batches import Batches
from worker.data.randomness import derive_seed
from worker.methods.adversarial import AdversarialState, AdversarialStep, balanced_temperatures, balanced_weights
from worker.protocol import CachePlace, Failed, Finished, Log, Metrics
from worker.students.model import Model
from worker.teachers import InProcessTeacher
from worker.training.loop import Stage, set_rate
from worker.training.state import TrainState, fresh_student

PLAIN: dict[str, Any] = {"kind": "adversarial"}
TAUGHT: dict[str, Any] = {"kind": "adversarial", "clean_teacher": "clean", "robust_teacher": "robust"}
TEACHERS = [{"model": "teacher", "name": "clean"}, {"model": "teacher", "name": "robust"}]
STEPS, LR = 5, 0.1
DROP = {"kind": "multi-step", "milestones": [1], "gamma": 0.1}
"""After three of the steps."""


def scene(method: dict[str, Any], student: Student | None = None, **settings: Any) -> tuple[Stage, TrainState]:
    """A stage in float64 on pixels from 0 to 1 before its first step, with two teachers where they are named."""
    stage, state = prepare(student, **settings)
    recipe = stage.recipe.model_copy(update={"method": Adversarial.model_validate(method)})
    samples = stage.batches.samples
    pixels = replace(samples, inputs={"images": samples.inputs["images"].sigmoid()})
    teachers = {"clean": InProcessTeacher(other(state, 1))} if "clean_teacher" in method else {}
    state.student.double()
    state.method = AdversarialState(temperatures={"robust": method.get("temperature", 1.0), "clean": 1.0})
    return replace(stage, recipe=recipe, batches=Batches(pixels, 10, 0), teachers=teachers), state


def other(state: TrainState, seed: int) -> Model:
    return fresh_student(state.student.config, seed).double()


def take_steps(stage: Stage, state: TrainState) -> list[dict[str, Tensor]]:
    spec = stage.recipe.method
    assert isinstance(spec, Adversarial)
    step = AdversarialStep(spec, InProcessTeacher(other(state, 2)) if spec.robust_teacher else None)
    found = []
    for number in range(STEPS):
        set_rate(stage, state)
        found.append(step(stage, state, stage.step_inputs(number)))
        state.step += 1
    return found


def attacked(model: Model, x: Tensor, labels: Tensor, noise: Tensor, steps: int = 4) -> Tensor:
    moved = x + noise
    for _ in range(steps):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), labels), moved)
        moved = (moved.detach() + 0.02 * gradient.sign()).clamp(x - 0.05, x + 0.05).clamp(0, 1)
    return moved


def vector(model: Model) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


ATTACK = {"steps": 4, "step_size": 0.02, "bound": 0.05}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("balance", ["temperature-and-loss", "loss"])
@pytest.mark.parametrize("scale", ["exact", "reference"])
def test_the_weights_are_those_of_the_paper_s_steps(accumulate: int, balance: str, scale: str) -> None:
    rates = {"temperature_rate": 0.1, "weight_rate": 0.3, "label_weight": 0.4}
    method = {**TAUGHT, **ATTACK, **rates, "balance": balance, "scale": scale}
    stage, state = scene(method, accumulate=accumulate, schedule=DROP, epochs=2)
    student, clean, robust = fresh_student(state.student.config, 0).double(), other(state, 1), other(state, 2)
    t, w = {"a": 1.0, "n": 1.0}, {"a": 0.5, "n": 0.5}
    first: dict[str, float] = {}
    for number in range(STEPS):
        batch, factor = stage.batches.at(number), 1.0 if number < 3 else 0.1
        x, labels = batch.inputs["images"], batch.targets
        random = torch.Generator().manual_seed(derive_seed(0, "attack", number))
        x_adv = attacked(student, x, labels, 0.001 * torch.randn(x.shape, generator=random))
        logits = {"a": student(x_adv), "n": student(x)}
        q = {"a": (robust(x_adv) / t["a"]).softmax(-1).detach(), "n": (clean(x) / t["n"]).softmax(-1).detach()}
        extra = 1e-5 if scale == "reference" else 0.0
        terms = {k: q[k] * ((q[k] + extra).log() - logits[k].log_softmax(-1)) for k in q}
        means = {k: term.mean() if scale == "reference" else term.sum(-1).mean() for k, term in terms.items()}
        certain = {k: float((q[k] * (q[k] + extra).log()).mean()) for k in q}  # negative entropies
        if balance == "temperature-and-loss":
            for one, two in ("an", "na"):
                t[one] = min(max(t[one] - 0.1 * factor * np.sign(certain[one] / certain[two] - 1), 1.0), 10.0)
        first = first or {k: float(mean.detach()) for k, mean in means.items()}
        left = {k: float(mean.detach()) / first[k] for k, mean in means.items()}
        w = {k: w[k] - 0.3 * factor * (w[k] - left[k] / sum(left.values())) for k in w}
        loss = 0.4 * F.cross_entropy(logits["a"], labels) + w["a"] * means["a"] + w["n"] * means["n"]
        gradients = torch.autograd.grad(loss, list(student.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(student.parameters(), gradients, strict=True):
                weight -= LR * factor * gradient
    metrics = take_steps(stage, state)[-1]
    torch.testing.assert_close(vector(state.student), vector(student), rtol=1e-9, atol=1e-12)
    assert isinstance(state.method, AdversarialState)
    assert state.method.weights == pytest.approx({"robust": w["a"], "clean": w["n"]}, rel=1e-9)
    assert state.method.temperatures == pytest.approx({"robust": t["a"], "clean": t["n"]}, rel=1e-9)
    assert (max(t.values()) > 1.0) == (balance == "temperature-and-loss")
    assert float(metrics["loss/robust"]) == pytest.approx(float(means["a"].detach()), rel=1e-9)
    assert float(metrics["weight/robust"]) == pytest.approx(w["a"], rel=1e-9)


def test_without_teachers_the_losses_are_those_of_attacked_images() -> None:
    stage, state = scene({**PLAIN, **ATTACK, "random_start": "none"}, accumulate=2)
    student = fresh_student(state.student.config, 0).double()
    for number in range(STEPS):
        batch = stage.batches.at(number)
        x, labels = batch.inputs["images"], batch.targets
        loss = F.cross_entropy(student(attacked(student, x, labels, torch.zeros_like(x))), labels)
        gradients = torch.autograd.grad(loss, list(student.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(student.parameters(), gradients, strict=True):
                weight -= LR * gradient
    take_steps(stage, state)
    torch.testing.assert_close(vector(state.student), vector(student), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("method", "accumulate", "passes"), [(PLAIN, 1, 1), (TAUGHT, 1, 2), (TAUGHT, 2, 4)])
def test_statistics_are_those_of_the_passes_that_learn(method: dict[str, Any], accumulate: int, passes: int) -> None:
    """Neither the attack nor what is measured before the gradients leaves anything in them."""
    stage, state = scene({**method, "steps": 2}, CifarResNet(depth=8, width=4), accumulate=accumulate)
    take_steps(stage, state)
    norm = state.student.network.get_submodule("norm")
    assert int(norm.num_batches_tracked) == passes * STEPS  # type: ignore[arg-type]


def test_the_less_certain_teacher_is_cooled_and_the_slower_loss_weighs_more() -> None:
    warm = {"robust": 2.0, "clean": 1.0}
    cooled = balanced_temperatures(warm, {"robust": 1.0, "clean": 0.5}, 0.25)
    assert cooled == {"robust": 1.75, "clean": 1.25}
    assert balanced_temperatures(warm, {"robust": 0.5, "clean": 1.0}, 0.25) == {"robust": 2.25, "clean": 1.0}
    assert balanced_temperatures(warm, {"robust": 0.5, "clean": 0.5}, 0.25) == warm
    even, first = {"robust": 0.5, "clean": 0.5}, {"robust": 2.0, "clean": 4.0}
    moved = balanced_weights(even, {"robust": 1.5, "clean": 1.0}, first, 0.1)
    assert moved == pytest.approx({"robust": 0.525, "clean": 0.475})
    for none in ({"robust": 0.0, "clean": 0.0}, {"robust": 0.0, "clean": 1.0}):
        assert balanced_weights(even, {"robust": 0.0, "clean": 0.0}, none, 0.1) == even
    assert balanced_weights(even, {"robust": 0.0, "clean": 0.0}, first, 0.1) == even


def ran(folder: Path, **changes: Any) -> Played:
    place = CachePlace(folder=str(folder / "answers"))
    played = play(stage(folder, **changes).model_copy(update={"teacher_cache": place}), folder)
    assert isinstance(played.word, Finished), played.word
    return played


def report(folder: Path) -> Any:
    return json.loads((folder / "bundle" / "report.json").read_text())


CASES: dict[str, dict[str, Any]] = {
    "plain": {"recipe": {"method": {**PLAIN, "random_start": "uniform"}, "accumulate": 2}},
    "taught": {
        "teachers": TEACHERS,
        "recipe": {"method": TAUGHT, "ema_decay": 0.8, "schedule": {"kind": "cosine"}, "epochs": 2},
    },
    "staged": {
        "teachers": TEACHERS,
        "recipe": {"method": TAUGHT, "stages": [{"losses": [{"kind": "kd", "teacher": "robust"}], "epochs": 1}]},
    },
    "mixed": {
        "teachers": TEACHERS,
        "data": {"train": "data", "augment": [{"kind": "crop"}, {"kind": "mixup"}], "augment_epochs": 2},
        "recipe": {"method": {**TAUGHT, "label_weight": 0.0}, "accumulate": 3, "precision": "bf16"},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_job_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path, name: str) -> None:
    require_same_bits(partial(stage, **CASES[name]), tmp_path)
    straight, halting = (report(tmp_path / folder)["train"] for folder in ("straight", "halting"))
    assert straight["attack"] == halting["attack"]
    assert straight.get("balance") == halting.get("balance")


def test_a_death_between_two_steps_repeats_those_since_the_checkpoint(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"teachers": TEACHERS, "recipe": {"method": TAUGHT, "checkpoint": {"every_steps": 2}}}
    require_same_bits_after_death(partial(stage, **changes), AdversarialStep, tmp_path)


def test_everything_is_measured_counted_and_reported(tmp_path: Path) -> None:
    played = ran(tmp_path, teachers=TEACHERS, recipe={"method": TAUGHT, "accumulate": 2})
    values = {name: value for metrics in played.of(Metrics) for name, value in metrics.values.items()}
    named = ("loss/cross-entropy", "loss/robust", "loss/clean", "accuracy", "robust_accuracy")
    balanced = [f"{name}/{side}" for name in ("weight", "temperature") for side in ("robust", "clean")]
    assert {f"train/{name}" for name in ("loss", "grad_norm", *named, *balanced)} <= values.keys()
    found = report(tmp_path)
    train, samples = found["train"], 3 * found["samples"]["train"]
    passes = 10 * 2 + 2 + 3 + 3  # the attack, what is measured ahead, and a pass of learning on each side
    assert train["student_flops"] == samples * passes * found["student"]["flops"]
    teacher = found["teachers"]["robust"]["flops"]
    assert train["flops"] == samples * (passes * found["student"]["flops"] + 2 * teacher)  # if nothing were kept
    assert train["teacher_flops"] == samples * teacher + samples // 3 * teacher  # the clean one's answers are kept
    assert train["attack"] == {"steps": 10, "step_size": 2 / 255, "bound": 8 / 255, "random_start": "normal"}
    assert sum(train["balance"]["weights"].values()) == pytest.approx(1.0)
    assert "- every batch attacked by PGD of 10 steps" in (tmp_path / "bundle" / "README.md").read_text()


def test_outputs_of_the_robust_teacher_are_not_cached(tmp_path: Path) -> None:
    played = ran(tmp_path, teachers=TEACHERS, recipe={"method": TAUGHT, "epochs": 2})
    assert list(report(tmp_path)["train"]["teacher_cache"]) == ["clean"]
    (message,) = [log.message for log in played.of(Log) if "are not cached" in log.message]
    assert message == "the outputs of 'robust' are not cached: adversarial runs it on other inputs in every step"


def test_a_student_trained_on_attacked_images_withstands_attacks(tmp_path: Path) -> None:
    bound = {"bound": 0.15, "step_size": 0.05}
    asked = {"data": {"train": "data", "eval_fraction": 0.4}}
    asked |= {"evaluation": {"diagnostics": [{"kind": "robustness", **bound}]}}
    recipe: dict[str, Any] = {"epochs": 40, "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9}}
    ran(tmp_path / "alone", **asked, recipe=recipe)
    ran(tmp_path / "attacked", **asked, recipe={**recipe, "method": {**PLAIN, **bound}})
    alone, hardened = (
        report(tmp_path / name)["diagnostics"]["robustness"]["figures"]["student"] for name in ("alone", "attacked")
    )
    assert alone["accuracy"] > 0.9
    assert hardened["pgd_accuracy"] > alone["pgd_accuracy"] + 0.2


def test_pixels_of_no_known_range_are_refused(tmp_path: Path) -> None:
    assignment = stage(tmp_path, recipe={"method": PLAIN})
    images = 3 * np.random.default_rng(0).random((SAMPLES, SIDE, SIDE), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=images, y=np.arange(SAMPLES) % 4)
    word = play(assignment, tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "data.train")


def recipe(method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"recipe": {"method": {**PLAIN, **method}, **changes}}


HINT = {"kind": "hint", "pairs": [{"teacher": "a", "student": "b"}]}


@pytest.mark.parametrize(
    ("changes", "field", "accepted"),
    [
        ({**recipe({}), "task": "causal-lm"}, "recipe.method.kind", "image-classification"),
        ({**recipe({}), "task": "text-classification"}, "recipe.method.kind", "image-classification"),
        (recipe({"clean_teacher": "a"}), "recipe.method.clean_teacher", "the name of a teacher"),
        ({**recipe({"clean_teacher": "clean"}), "teachers": TEACHERS}, "recipe.method.robust_teacher", "neither"),
        ({**recipe({**TAUGHT, "robust_teacher": "x"}), "teachers": TEACHERS}, "recipe.method.robust_teacher", "robust"),
        ({**recipe({}), "teachers": TEACHERS}, "teachers", "no teacher"),
        (recipe({"label_weight": 0.0}), "recipe.method.label_weight", "above 0"),
        (recipe({}, compile=True), "recipe.compile", "false"),
        (recipe({}, losses=[{"kind": "uskd", "feature": "a"}]), "recipe.losses[0].kind", "cross-entropy"),
        ({**recipe(TAUGHT, losses=[{"kind": "kd"}]), "teachers": TEACHERS}, "recipe.losses[0].kind", "cross-entropy"),
        ({**recipe(TAUGHT, losses=[HINT]), "teachers": TEACHERS}, "recipe.losses[0].kind", "cross-entropy"),
        (
            {**recipe(TAUGHT, optimizer={"kind": "normalized-gd"}), "teachers": TEACHERS},
            "recipe.optimizer.kind",
            "any other",
        ),
        (
            {**recipe({}), "resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}},
            "resources.sharding",
            "none",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(changes: dict[str, Any], field: str, accepted: str) -> None:
    job = JobSpec.model_validate(document(**changes))
    found = {problem.param: problem.accepted for problem in find_problems(job)}
    assert accepted in found[field]


@pytest.mark.parametrize(
    ("field", "method"),
    [
        ("bound", {"bound": 0.0}),
        ("bound", {"bound": 1.1}),
        ("step_size", {"step_size": 0.0}),
        ("step_size", {"bound": 0.01, "step_size": 0.03}),
        ("step_size", {"bound": 0.001}),
        ("steps", {"steps": 0}),
        ("weight_rate", {"weight_rate": 1.1}),
        ("temperature", {"temperature": 0.5}),
    ],
)
def test_numbers_that_are_no_attack_are_refused_by_name(field: str, method: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(document(**recipe(method)))
    assert [error["loc"][-1] for error in refused.value.errors()] == [field]


@pytest.mark.parametrize(("method", "accumulate", "passes"), [(PLAIN, 2, 23), (TAUGHT, 1, 26), (TAUGHT, 2, 28)])
def test_an_estimate_counts_the_attack(method: dict[str, Any], accumulate: int, passes: int) -> None:
    job = JobSpec.model_validate(document(**recipe(method, accumulate=accumulate), teachers=TEACHERS))
    assert job.recipe.method.passes(job.recipe) == passes


def test_what_it_accepts_has_no_problems() -> None:
    for changes in (recipe({}), {**recipe(TAUGHT), "teachers": TEACHERS}, CASES["mixed"]):
        assert find_problems(JobSpec.model_validate(document(**changes))) == []
