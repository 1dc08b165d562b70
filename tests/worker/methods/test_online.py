"""A teacher that learns together with the student."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from app.recipe.teachers.teacher import TeacherShare
from tests.worker.methods.test_mutual import vectors
from tests.worker.training.builders import (
    Played,
    document,
    play,
    require_same_bits,
    require_same_bits_after_death,
    stage,
    weights,
)
from tests.worker.training.test_loop import prepare
from worker.losses.builder import LossBuilder
from worker.losses.objective import Objective
from worker.methods.online import OnlineStep
from worker.protocol import Failed, Finished, Metrics
from worker.students.weights import WEIGHTS
from worker.training.loop import Stage, set_rate
from worker.training.stages import begin_stage, wrap_learners
from worker.training.state import TrainState, fresh_learner, fresh_student

BD_KD: list[dict[str, Any]] = [{"kind": "cross-entropy"}, {"kind": "bd-kd"}]
WIDE: dict[str, Any] = {"architecture": "mlp", "hidden": [12]}
SCRATCH: dict[str, Any] = {"kind": "online", "teacher": WIDE}
STORED: dict[str, Any] = {"kind": "online"}
STEPS, LR = 4, 0.1


def recipe(method: dict[str, Any] = STORED, **changes: Any) -> dict[str, Any]:
    return {"losses": BD_KD, "method": method, "epochs": 2, **changes}


def scene(method: dict[str, Any], **settings: Any) -> tuple[Stage, TrainState, OnlineStep]:
    """A stage in float64 before its first step, and the step of a teacher with random weights."""
    stage, state = prepare(method={**SCRATCH, **method}, **settings)
    spec: Any = stage.recipe.method
    teacher = fresh_student(state.student.config.model_copy(update={"architecture": spec.teacher}), 7).double()
    state.learners["teacher"] = fresh_learner(stage.recipe, teacher, spec.teacher_optimizer, spec.teacher_schedule)
    state.student.double()
    wrap_learners(state, stage.ranks)
    begin_stage(stage, state)
    objective = Objective(spec.losses, LossBuilder({}, {}, 3), [TeacherShare("student")])
    return stage, state, OnlineStep("teacher", objective, has_accuracy=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of each row."""
    return (p * (p.log() - q.log())).sum(-1)


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(-1)


def student_loss(own: Tensor, teacher: Tensor, labels: Tensor, alpha: float, temperature: float) -> Tensor:
    """As the paper has it, written out with probabilities, with delta = 3."""
    ps, pt = (own / temperature).softmax(-1), (teacher.detach() / temperature).softmax(-1)
    forward, reverse = kl(pt, ps), kl(ps, pt)
    certain = entropy(ps) < entropy(pt)
    balanced = torch.where(certain, 3.0 * forward + reverse, forward + 3.0 * reverse)
    return F.cross_entropy(own, labels) + alpha * temperature**2 * balanced.mean()


def teacher_loss(own: Tensor, student: Tensor, labels: Tensor, alpha: float, temperature: float) -> Tensor:
    pt, ps = (own / temperature).softmax(-1), (student.detach() / temperature).softmax(-1)
    return F.cross_entropy(own, labels) + alpha * temperature**2 * kl(pt, ps).mean()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_both_take_the_steps_of_the_paper_s_equations(accumulate: int, temperature: float) -> None:
    alpha, rate = 0.5, 0.03
    bd_kd = {"kind": "bd-kd", "weight": alpha, "delta": 3.0, "temperature": temperature}
    reverse = {"kind": "reverse-kl", "weight": alpha * temperature**2, "temperature": temperature}
    method = {
        "losses": [{"kind": "cross-entropy"}, reverse],
        "teacher_optimizer": {"kind": "sgd", "lr": rate, "momentum": 0.0},
    }
    settings: dict[str, Any] = {"losses": [{"kind": "cross-entropy"}, bd_kd], "accumulate": accumulate}
    stage, state, step = scene(method, **settings)
    other = scene(method, **settings)[1]
    student, teacher = other.student, other.learners["teacher"].model
    for number in range(STEPS):
        batch = stage.batches.at(number)
        images, labels = batch.inputs["images"], batch.targets
        own, taught = student(images), teacher(images)
        losses = (
            (student, LR, student_loss(own, taught, labels, alpha, temperature)),
            (teacher, rate, teacher_loss(taught, own, labels, alpha, temperature)),
        )
        for model, lr, loss in losses:
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for weight, gradient in zip(model.parameters(), gradients, strict=True):
                    weight -= lr * gradient
        set_rate(stage, state)
        values = step(stage, state, stage.step_inputs(number))
        state.step += 1
        assert float(values["loss"]) == pytest.approx(losses[0][2].item(), rel=1e-9)
        assert float(values["teacher/loss"]) == pytest.approx(losses[1][2].item(), rel=1e-9)
    trained = vectors([state.student, state.learners["teacher"].model])
    for found, expected in zip(trained, vectors([student, teacher]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_each_network_runs_once_in_a_step() -> None:
    stage, state, step = scene({})
    runs: list[str] = []
    for name, model in (("student", state.student), ("teacher", state.learners["teacher"].model)):
        model.network.register_forward_hook(lambda *_, name=name: runs.append(name))
    step(stage, state, stage.step_inputs(0))
    assert sorted(runs) == ["student", "teacher"]


def ran(folder: Path, **changes: Any) -> Played:
    played = play(stage(folder, **changes), folder)
    assert isinstance(played.word, Finished), played.word
    return played


def report(folder: Path) -> Any:
    return json.loads((folder / "bundle" / "report.json").read_text())


AVERAGED: dict[str, Any] = {
    "ema_decay": 0.8,
    "optimizer": {"kind": "adamp", "lr": 0.01},
    "schedule": {"kind": "cosine"},
    "accumulate": 2,
}
OWN: dict[str, Any] = {
    **SCRATCH,
    "teacher_optimizer": {"kind": "sgd", "lr": 0.05},
    "teacher_schedule": {"kind": "linear"},
}


@pytest.mark.parametrize(
    ("teacher", "method", "settings"),
    [(True, STORED, {}), (False, OWN, AVERAGED)],
    ids=["stored", "averaged"],
)
def test_a_job_that_is_stopped_resumes_to_the_same_bits(
    tmp_path: Path, teacher: bool, method: dict[str, Any], settings: dict[str, Any]
) -> None:
    require_same_bits(partial(stage, teacher=teacher, recipe=recipe(method, **settings)), tmp_path)
    straight, halting = (report(tmp_path / name)["teacher"] for name in ("straight", "halting"))
    timed = ("latency_ms_p50", "latency_ms_p95", "samples_per_second")
    assert {**straight, **dict.fromkeys(timed)} == {**halting, **dict.fromkeys(timed)}


def test_a_death_between_two_steps_repeats_those_since_the_checkpoint(tmp_path: Path) -> None:
    settings = recipe(checkpoint={"every_steps": 2})
    require_same_bits_after_death(partial(stage, teacher=True, recipe=settings), OnlineStep, tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_report_compares_with_the_teacher_as_it_ended(tmp_path: Path, precision: str) -> None:
    diagnostics = [{"kind": "calibration", "bins": 5}]
    settings = recipe(OWN | {"teacher": None}, precision=precision, epochs=6)
    played = ran(tmp_path, teacher=True, recipe=settings, evaluation={"diagnostics": diagnostics})
    values = {name: value for metrics in played.of(Metrics) for name, value in metrics.values.items()}
    for metric in ("loss", "loss/cross-entropy", "accuracy", "grad_norm", "lr"):
        assert {f"train/{metric}", f"train/teacher/{metric}"} <= values.keys()
    assert {"train/loss/bd-kd", "train/teacher/loss/reverse-kl"} <= values.keys()
    found = report(tmp_path)
    teacher = found["teachers"]["teacher"]
    assert teacher == found["teacher"]
    assert teacher["accuracy"] > teacher["before"]["accuracy"]
    assert set(teacher["before"]) == {"accuracy", "nll", "ece", "adaptive_ece", "brier"}
    assert 0 <= found["student"]["agreement"] <= 1
    samples = {row["class"]: row for row in found["per_class"]}
    right = sum(row["teacher"] * row["samples"] for row in samples.values())
    assert right / found["samples"]["eval"] == pytest.approx(teacher["accuracy"])
    figures = found["diagnostics"]["calibration"]["figures"]
    assert {"ece", "adaptive_ece"} <= figures["student"].keys() & figures["teacher"].keys()
    assert figures["teacher"]["accuracy"] > teacher["before"]["accuracy"]
    files = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert "calibration.png" in files
    assert [name for name in files if name.endswith(".safetensors")] == [WEIGHTS]  # the student's alone
    assert found["train"]["teacher_cache"] == {}
    assert found["train"]["teacher_flops"] == 6 * found["samples"]["train"] * 3 * teacher["flops"]
    assert values["train/flops/teacher"] == found["train"]["teacher_flops"]
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "| | teacher before | teacher |" in card
    assert "which learned too" in card


def test_agreement_on_the_way_is_with_the_teacher_of_that_moment(tmp_path: Path) -> None:
    alone = {"losses": [{"kind": "cross-entropy"}], "teacher_optimizer": {"kind": "adamw", "lr": 0.05}}
    settings = recipe({**SCRATCH, **alone}, epochs=3, optimizer={"kind": "sgd", "lr": 1e-12})
    played = ran(tmp_path, recipe=settings)
    agreed = [metrics.values["eval/kl"] for metrics in played.of(Metrics) if "eval/kl" in metrics.values]
    assert len(agreed) >= 3
    assert len(set(agreed)) == len(set(agreed[:3])) == 3  # the student stays, and the teacher moves
    assert report(tmp_path)["student"]["kl"] == pytest.approx(agreed[-1])


def test_the_seed_determines_the_teacher(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ran(tmp_path / name, recipe=recipe({**SCRATCH, "seed": seed}))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_a_teacher_of_another_name_and_labels_learns(tmp_path: Path) -> None:
    teachers = [{"model": "teacher", "name": "tutor"}]
    losses = [{"kind": "cross-entropy"}, {"kind": "kd", "teacher": "tutor"}, {"kind": "kd-sim"}]
    method = {**STORED, "losses": [{"kind": "kd-sim", "teacher": "student"}, {"kind": "cross-entropy"}]}
    played = ran(tmp_path, teachers=teachers, recipe=recipe(method, losses=losses))
    values = {name for metrics in played.of(Metrics) for name in metrics.values}
    assert {"train/loss/kd-sim", "train/tutor/loss/kd-sim", "train/flops/teacher"} <= values
    assert list(report(tmp_path)["teachers"]) == ["tutor"]


FAILING: list[tuple[dict[str, Any], str, str]] = [
    ({"recipe": recipe()}, "teacher", "recipe.method.teacher"),
    ({"teacher": True, "recipe": recipe(SCRATCH)}, "recipe.method.teacher", "one of the two"),
    ({"teacher": True, "recipe": recipe({**STORED, "seed": 1})}, "recipe.method.seed", "null"),
    (
        {"teachers": [{"model": "a", "name": "a"}, {"model": "b", "name": "b"}], "recipe": recipe()},
        "teachers",
        "one teacher",
    ),
    ({"recipe": recipe(SCRATCH, losses=[{"kind": "cross-entropy"}])}, "recipe.losses", "bd-kd"),
    ({"teacher": True, "recipe": recipe(losses=[{"kind": "cross-entropy"}])}, "teacher", "kd"),
    ({"teachers": [{"model": "a", "precision": "bf16"}], "recipe": recipe()}, "teachers[0].precision", "null"),
    (
        {"teachers": [{"model": "a", "precision": "fp32"}], "recipe": recipe(precision="bf16")},
        "teachers[0].precision",
        "null",
    ),
    ({"teacher": True, "teacher_cache": {"store": "top-k", "k": 2}, "recipe": recipe()}, "teacher_cache", "off"),
    ({"teacher": True, "recipe": recipe(compile=True)}, "recipe.compile", "false"),
    (
        {"teacher": True, "recipe": recipe(stages=[{"losses": [{"kind": "kd"}], "epochs": 1}])},
        "recipe.stages",
        "none",
    ),
    (
        {
            **{"teacher": True, "teacher_cache": {"store": "off"}, "recipe": recipe()},
            "resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"},
        },
        "resources.sharding",
        "none",
    ),
    ({"task": "causal-lm", "teacher": True, "recipe": recipe()}, "recipe.method.kind", "supervised"),
    ({"task": "regression", "teacher": True, "recipe": recipe()}, "recipe.method.kind", "supervised"),
    (
        {
            "teacher": True,
            "recipe": recipe(losses=[{"kind": "hint", "pairs": [{"teacher": "a", "student": "b"}]}]),
        },
        "recipe.losses[0].kind",
        "a loss on outputs",
    ),
    (
        {
            "teacher": True,
            "recipe": recipe({**STORED, "losses": [{"kind": "rkd", "pair": {"teacher": "a", "student": "b"}}]}),
        },
        "recipe.method.losses[0].kind",
        "a loss on outputs",
    ),
    (
        {"teacher": True, "recipe": recipe({**STORED, "losses": [{"kind": "kd", "teacher": "teacher"}]})},
        "recipe.method.losses[0].teacher",
        "student",
    ),
    (
        {"teacher": True, "recipe": recipe({**STORED, "losses": [{"kind": "binary-cross-entropy"}]})},
        "recipe.method.losses[0].kind",
        "a loss for this task",
    ),
    (
        {"teacher": True, "recipe": recipe({**STORED, "losses": [{"kind": "dist"}]}, accumulate=2)},
        "recipe.accumulate",
        "1",
    ),
    (
        {
            **{"teacher": True, "recipe": recipe({**STORED, "losses": [{"kind": "dist"}]})},
            "resources": {"processes": 2, "queue": "cpu"},
        },
        "resources.processes",
        "1",
    ),
    (
        {
            **{"teacher": True, "resources": {"processes": 2, "queue": "cpu"}},
            "recipe": recipe({**STORED, "teacher_optimizer": {"kind": "normalized-gd", "lr": 0.1}}),
        },
        "recipe.method.teacher_optimizer.kind",
        "one process",
    ),
    (
        {"recipe": recipe({**SCRATCH, "teacher": {"architecture": "vit", "width": 10, "heads": 3}})},
        "recipe.method.teacher.heads",
        "divisor",
    ),
]


@pytest.mark.parametrize(("changes", "field", "accepted"), FAILING)
def test_what_does_not_fit_is_refused_by_its_field(changes: dict[str, Any], field: str, accepted: str) -> None:
    job = JobSpec.model_validate(document(**changes))
    found = {problem.param: problem.accepted for problem in find_problems(job)}
    assert field in found
    assert accepted in found[field]


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": True, "recipe": recipe()},
        {"recipe": recipe(OWN, precision="bf16", accumulate=2, ema_decay=0.9)},
        {"teacher": True, "teacher_cache": {"store": "off"}, "recipe": recipe()},
        {"teachers": [{"model": "a", "precision": "fp32"}], "recipe": recipe()},
        {"teacher": True, "recipe": recipe(), "resources": {"processes": 2, "queue": "cpu"}},
        {
            **{"task": "multi-label-classification", "teacher": True},
            "recipe": recipe(
                {**STORED, "losses": [{"kind": "binary-cross-entropy"}, {"kind": "binary-kd"}]},
                losses=[{"kind": "binary-cross-entropy"}, {"kind": "binary-kd"}],
            ),
        },
    ],
)
def test_what_fits_has_no_problem(changes: dict[str, Any]) -> None:
    assert find_problems(JobSpec.model_validate(document(**changes))) == []


def test_groups_that_match_nothing_of_the_teacher_are_refused(tmp_path: Path) -> None:
    optimizer = {"kind": "sgd", "lr": 0.1, "groups": [{"match": "nowhere.*", "lr": 0.01}]}
    word = play(stage(tmp_path, recipe=recipe({**SCRATCH, "teacher_optimizer": optimizer})), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "recipe.method.teacher_optimizer.groups[0].match")
