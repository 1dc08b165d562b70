"""A teacher that learns from what its student does in a quiz."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES, Kd, Pkd, Tvd
from app.recipe.losses.taps import Tap
from app.recipe.methods.meta import DIFFERENTIABLE, Meta
from app.recipe.optimizers import Sgd
from app.recipe.students.architectures import CifarResNet, Mlp, Student, Transformers, Vit
from app.recipe.teachers.teacher import Teacher
from tests.kinds import term
from tests.worker.losses.samples import draw, term_of
from tests.worker.training.builders import (
    Played,
    document,
    play,
    require_same_bits,
    require_same_bits_after_death,
    stage,
)
from tests.worker.training.test_loop import prepare
from worker.data.batches import Batch, Batches, whole_split
from worker.data.load import keep_back
from worker.errors import UserError
from worker.losses import objective as objectives
from worker.losses.builder import LossBuilder
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.methods.meta import MetaStep
from worker.outputs import TeacherSignal
from worker.protocol import CachePlace, Failed, Finished, Log, Metrics
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.recorder import Recorder
from worker.tasks import task_for
from worker.tasks.base import HeldOut
from worker.tasks.classification import Classification
from worker.teachers import read_teacher_config
from worker.training.loop import set_rate, take_step
from worker.training.stages import begin_stage, wrap_learners
from worker.training.state import Learner, TrainState, placeholder_optimizer

META: dict[str, Any] = {"kind": "meta", "teacher_optimizer": {"kind": "sgd", "lr": 0.5}}
LOSSES_OF_JOBS = [{"kind": "cross-entropy", "weight": 0.5}, {"kind": "kd", "weight": 0.5, "temperature": 2.0}]
RECIPE: dict[str, Any] = {"method": META, "losses": LOSSES_OF_JOBS, "epochs": 2}
STEPS, LR, PILOT_LR, TEACHER_LR = 3, 0.1, 0.3, 0.2
DROPPING = Transformers(
    config={
        **{"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 8, "patch_size": 2, "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2},
    }
)
VIT = Vit(patch_size=2, width=8, heads=2)


BOTH: list[dict[str, Any]] = [{"kind": "cross-entropy"}, {"kind": "kd"}]
HIDDEN = {"teacher": "2", "student": "2"}
PATIENT: dict[str, Any] = {"kind": "pkd", "pairs": [HIDDEN]}
"""On the hidden layer of an `mlp`."""


class Scene:
    """A stage in float64 before its first step, with its teacher, its quiz, and the step."""

    def __init__(
        self,
        student: Student | None = None,
        momentum: float = 0.9,
        precision: str = "fp32",
        losses: list[dict[str, Any]] = BOTH,
        **method: Any,
    ) -> None:
        rates = {"kind": "sgd", "lr": TEACHER_LR, "momentum": momentum}
        method = {"pilot_lr": PILOT_LR, "teacher_optimizer": rates, "quiz_batch_size": 6, **method}
        settings = {"method": {"kind": "meta", **method}, "precision": precision, "losses": losses}
        self.stage, self.state = prepare(student, teacher=True, **settings)
        torch.manual_seed(1)
        self.teacher = Model(self.state.student.config).double().eval()
        self.state.student.double()
        spec = self.stage.recipe.method
        assert isinstance(spec, Meta)
        optimizer = placeholder_optimizer()
        learner = Learner(self.teacher, None, optimizer, self.teacher, spec.teacher_optimizer)
        self.state.learners["teacher"] = learner
        wrap_learners(self.state, self.stage.ranks)
        begin_stage(self.stage, self.state)
        random = torch.Generator().manual_seed(9)
        images, labels = torch.randn(8, 1, 4, 4, generator=random), torch.randint(3, (8,), generator=random)
        self.quiz = Batches(whole_split({"images": images}, labels), 6, 3)
        taps = [tap for loss in self.stage.recipe.losses for tap in loss.taps().teacher]
        self.spec = spec
        self.step = MetaStep(spec, "teacher", self.quiz, Recorder(self.teacher.network, taps))

    def take(self) -> dict[str, Tensor]:
        set_rate(self.stage, self.state)
        values = self.step(self.stage, self.state, self.stage.step_inputs(self.state.step))
        self.state.step += 1
        return values

    def take_plainly(self) -> dict[str, Tensor]:
        """A supervised step."""
        set_rate(self.stage, self.state)
        inputs = self.stage.step_inputs(self.state.step)
        with torch.no_grad():
            logits = self.teacher(inputs.batch.inputs["images"])
        values = take_step(self.stage, self.state, replace(inputs, signals=[{"teacher": TeacherSignal(logits)}]))
        self.state.step += 1
        return values


def loss_of(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """That of `prepare`, written out: cross-entropy, and 16 KL(p || q) at a temperature of 4."""
    p, q = (teacher / 4).softmax(-1), (student / 4).softmax(-1)
    return F.cross_entropy(student, labels) + 16 * (p * (p.log() - q.log())).sum(-1).mean()


def plain_round(scene: Scene, student: Model, teacher: Model, number: int, velocity: list[Tensor]) -> float:
    """A step as the paper has it, with one graph through everything; returns the quiz's loss."""
    batch = scene.stage.batches.at(number)
    images, labels = batch.inputs["images"], batch.targets
    theta = {name: weight.detach().requires_grad_() for name, weight in student.named_parameters()}
    loss = loss_of(functional_call(student, theta, (images,)), teacher(images), labels)
    gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    pilot = {
        name: weight - PILOT_LR * gradient for (name, weight), gradient in zip(theta.items(), gradients, strict=True)
    }
    parts = [scene.quiz.at(number * scene.spec.quiz_batches + part) for part in range(scene.spec.quiz_batches)]
    answers = [functional_call(student, pilot, (part.inputs["images"],)) for part in parts]
    asked = torch.stack([F.cross_entropy(each, part.targets) for each, part in zip(answers, parts, strict=True)]).mean()
    found = torch.autograd.grad(asked, list(teacher.parameters()))
    with torch.no_grad():
        for weight, gradient, moment in zip(teacher.parameters(), found, velocity, strict=True):
            moment.mul_(0.9).add_(gradient)
            weight -= TEACHER_LR * moment
    own = torch.autograd.grad(loss_of(student(images), teacher(images).detach(), labels), list(student.parameters()))
    with torch.no_grad():
        for weight, gradient in zip(student.parameters(), own, strict=True):
            weight -= LR * gradient
    return float(asked.detach())


def vector(model: Model) -> Tensor:
    return torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])


@pytest.mark.parametrize("student", [Mlp(hidden=[6]), VIT], ids=lambda each: each.architecture)
@pytest.mark.parametrize("batches", [1, 2])
def test_the_weights_are_those_of_the_paper_s_steps(student: Student, batches: int) -> None:
    scene = Scene(student, quiz_batches=batches)
    pupil, teacher = deepcopy(scene.state.student), deepcopy(scene.teacher)
    velocity = [torch.zeros_like(weight) for weight in teacher.parameters()]
    for number in range(STEPS):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            asked = plain_round(scene, pupil, teacher, number, velocity)
        values = scene.take()
        assert float(values["loss/quiz"]) == pytest.approx(asked, rel=1e-9)
        torch.testing.assert_close(vector(scene.teacher), vector(teacher), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(vector(scene.state.student), vector(pupil), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "student", [Mlp(hidden=[6]), CifarResNet(depth=8, width=2), VIT, DROPPING], ids=lambda each: each.architecture
)
def test_a_finite_difference_comes_close_to_the_exact_gradient(student: Student) -> None:
    """Also with batch norm and dropout: all passes of a pilot update draw the same random numbers."""
    moved = []
    for settings in ({"order": "second"}, {"order": "finite-difference", "epsilon": 1e-4}):
        scene = Scene(student, **settings)
        before = vector(scene.teacher)
        torch.manual_seed(4)
        scene.take()
        moved.append(vector(scene.teacher) - before)
    assert float(moved[0].norm()) > 1e-6
    assert float((moved[1] - moved[0]).norm() / moved[0].norm()) < 1e-3


def copied(model: Model) -> tuple[Model, Recorder]:
    """A copy, and a recorder of its hidden layer."""
    copy = Model(model.config).double().eval()
    copy.load_state_dict(model.state_dict())
    return copy, Recorder(copy.network, [Tap(path="2")])


def test_a_loss_on_activations_reaches_the_teacher_through_its_own() -> None:
    """As the paper's loss on texts; the rate of the teacher makes its change the gradient."""
    scene = Scene(Mlp(hidden=[6]), momentum=0.0, losses=[*BOTH, PATIENT])
    (student, hidden), (teacher, taught) = copied(scene.state.student), copied(scene.teacher)
    before = vector(scene.teacher)
    batch, quiz = scene.stage.batches.at(0), scene.quiz.at(0)

    def loss(weights: dict[str, Tensor]) -> Tensor:
        logits = [functional_call(student, weights, (batch.inputs["images"],)), teacher(batch.inputs["images"])]
        ours, theirs = (F.normalize(next(iter(each.take().values()))) for each in (hidden, taught))
        return loss_of(*logits, batch.targets) + 100.0 * (ours - theirs).square().mean()

    theta = {name: weight.detach().requires_grad_() for name, weight in student.named_parameters()}
    gradients = torch.autograd.grad(loss(theta), list(theta.values()), create_graph=True)
    pilot = {name: theta[name] - PILOT_LR * each for name, each in zip(theta, gradients, strict=True)}
    asked = F.cross_entropy(functional_call(student, pilot, (quiz.inputs["images"],)), quiz.targets)
    expected = torch.cat([each.flatten() for each in torch.autograd.grad(asked, list(teacher.parameters()))])
    values = scene.take()
    assert float(values["loss/quiz"]) == pytest.approx(float(asked.detach()), rel=1e-9)
    torch.testing.assert_close((before - vector(scene.teacher)) / TEACHER_LR, expected, rtol=1e-7, atol=1e-9)

    coarse = Scene(Mlp(hidden=[6]), momentum=0.0, losses=[*BOTH, PATIENT], order="finite-difference", epsilon=1e-5)
    coarse.take()
    moved = (before - vector(coarse.teacher)) / TEACHER_LR
    assert float((moved - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("order", ["second", "finite-difference"])
@pytest.mark.parametrize("student", [CifarResNet(depth=8, width=2), DROPPING], ids=lambda each: each.architecture)
def test_the_pilot_leaves_nothing_of_the_student_changed(student: Student, order: str) -> None:
    """With a teacher that stands still the step is a plain one to the bit: weights, buffers, moments, random state."""
    scene, plain = Scene(student, order=order), Scene(student)
    for number in range(STEPS):
        torch.manual_seed(number)
        scene.state.learners["teacher"].optimizer_spec = Sgd(lr=1e-300, momentum=0.0)
        scene.take()
        after = torch.get_rng_state()
        torch.manual_seed(number)
        plain.take_plainly()
        assert torch.equal(torch.get_rng_state(), after)
        ours, theirs = scene.state.student.state_dict(), plain.state.student.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert_same_moments(scene.state, plain.state)
    assert all(weight.grad is None for weight in scene.teacher.parameters())


def assert_same_moments(ours: TrainState, theirs: TrainState) -> None:
    pairs = [each.optimizer.state_dict()["state"] for each in (ours, theirs)]
    assert pairs[0].keys() == pairs[1].keys()
    for number, values in pairs[0].items():
        assert all(torch.equal(value, pairs[1][number][name]) for name, value in values.items() if value is not None)


@pytest.mark.parametrize("student", [Mlp(hidden=[6]), VIT], ids=lambda each: each.architecture)
def test_bf16_computes_the_gradient_coarsely(student: Student) -> None:
    moved = []
    for precision in ("fp32", "bf16"):
        scene = Scene(student, precision=precision)
        scene.state.student.float(), scene.teacher.float()
        before = vector(scene.teacher)
        scene.take()
        moved.append(vector(scene.teacher) - before)
    fine, coarse = moved
    assert coarse.dtype == torch.float32
    assert 0.0 < float((coarse - fine).norm() / fine.norm()) < 0.05


def test_the_teacher_learns_in_evaluation_mode() -> None:
    scene = Scene(CifarResNet(depth=8, width=2))
    before = {name: tensor.clone() for name, tensor in scene.teacher.named_buffers()}
    weights_before = vector(scene.teacher)
    scene.take()
    assert not scene.teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in scene.teacher.named_buffers())
    assert not torch.equal(vector(scene.teacher), weights_before)


def test_the_clip_bounds_the_teacher_s_gradient_too() -> None:
    free, bounded = Scene(momentum=0.0), Scene(momentum=0.0)
    object.__setattr__(bounded.stage, "recipe", bounded.stage.recipe.model_copy(update={"clip_norm": 1e-3}))
    before = vector(bounded.teacher)
    values = bounded.take()
    assert float(values["teacher/grad_norm"]) > 1e-3
    assert float(values["teacher/grad_norm"]) == pytest.approx(float(free.take()["teacher/grad_norm"]))
    assert float((vector(bounded.teacher) - before).norm()) == pytest.approx(TEACHER_LR * 1e-3, rel=1e-3)


ON_LOGITS = [each.model_fields["kind"].default for each in DIFFERENTIABLE if each.needs_teacher and each is not Pkd]


@pytest.mark.parametrize("kind", ON_LOGITS)
def test_gradients_of_the_losses_are_differentiable_by_the_teacher_s_logits(kind: str) -> None:
    """And their own value is what it is for a teacher that does not learn."""
    (found,) = [loss for loss in LOSSES if loss.model_fields["kind"].default == kind]
    spec, rows = found.model_validate(term(kind)), draw(4)
    teacher = rows.teacher
    assert teacher is not None
    loss = term_of(spec)

    def gradient(logits: Tensor) -> Tensor:
        student = rows.student.detach().requires_grad_()
        total = loss(rows._replace(student=student, teacher=logits, teacher_learns=True)).sum()
        return torch.autograd.grad(total, student, create_graph=True)[0]

    assert torch.equal(loss(rows._replace(teacher_learns=True)), loss(rows))
    assert torch.autograd.gradcheck(gradient, teacher.detach().requires_grad_())
    leaf = teacher.detach().requires_grad_()
    assert float(torch.autograd.grad(gradient(leaf).square().sum(), leaf)[0].norm()) > 0


def test_total_variation_has_a_gradient_that_tells_the_teacher_nothing() -> None:
    rows = draw(4)
    assert rows.teacher is not None
    leaf, student = rows.teacher.detach().requires_grad_(), rows.student.detach().requires_grad_()
    value = term_of(Tvd())(rows._replace(student=student, teacher=leaf, teacher_learns=True)).sum()
    (gradient,) = torch.autograd.grad(value, student, create_graph=True)
    (found,) = torch.autograd.grad(gradient.square().sum(), leaf, allow_unused=True, materialize_grads=True)
    assert float(found.norm()) == 0.0


def test_where_kernels_run_the_pilot_does_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "runs_on_triton", lambda _: True)
    monkeypatch.setattr(objectives, "row_loss", None)
    spec = Kd()
    objective = Objective([spec], LossBuilder({}, {}, 3), [Teacher(model="m")])
    student, teacher, labels = (
        torch.randn(4, 3, requires_grad=True),
        torch.randn(4, 3),
        torch.zeros(4, dtype=torch.long),
    )
    seen = BatchOutputs(student, labels, {"teacher": TeacherSignal(teacher)}, teacher_learns=True)
    assert objective(seen, objective.count(labels))[TOTAL].requires_grad


def ran(folder: Path, **changes: Any) -> Played:
    played = play(stage(folder, teacher=True, **changes), folder)
    assert isinstance(played.word, Finished), played.word
    return played


def report(folder: Path) -> Any:
    return json.loads((folder / "bundle" / "report.json").read_text())


@pytest.mark.parametrize(
    "recipe",
    [
        {"ema_decay": 0.8, "optimizer": {"kind": "adamp", "lr": 0.01}, "schedule": {"kind": "cosine"}},
        {"method": {**META, "order": "finite-difference", "teacher_schedule": {"kind": "cosine"}}},
        {"losses": [*LOSSES_OF_JOBS, PATIENT]},
    ],
    ids=["second", "difference", "activations"],
)
def test_a_job_that_is_stopped_resumes_to_the_same_bits(tmp_path: Path, recipe: dict[str, Any]) -> None:
    student = {"architecture": "mlp", "hidden": [12]}  # as wide as the teacher
    require_same_bits(partial(stage, teacher=True, student=student, recipe={**RECIPE, **recipe}), tmp_path)
    straight, halting = (report(tmp_path / name) for name in ("straight", "halting"))
    assert straight["teacher"]["nll"] == halting["teacher"]["nll"]
    assert straight["student"]["kl"] == halting["student"]["kl"]


def test_a_death_between_two_steps_repeats_those_since_the_checkpoint(tmp_path: Path) -> None:
    recipe = {**RECIPE, "checkpoint": {"every_steps": 2}}
    require_same_bits_after_death(partial(stage, teacher=True, recipe=recipe), MetaStep, tmp_path)


def test_everything_is_measured_counted_and_reported(tmp_path: Path) -> None:
    played = ran(tmp_path, recipe={**RECIPE, "batch_size": 10, "method": {**META, "quiz_fraction": 0.25}})
    values = {name: value for metrics in played.of(Metrics) for name, value in metrics.values.items()}
    for metric in ("loss", "loss/kd", "loss/pilot", "loss/quiz", "grad_norm", "teacher/grad_norm"):
        assert f"train/{metric}" in values
    found = report(tmp_path)
    train, student, teacher = found["train"], found["student"]["flops"], found["teacher"]["flops"]
    assert found["samples"] == {"train": 30, "eval": 10}
    assert train["meta"] == {"quiz_samples": 10, "order": "second", "teacher": "teacher"}
    assert "10 of 40 training samples are kept back for the quiz of the teacher" in messages(played)
    assert train["steps"] == 6
    assert train["student_flops"] == (60 * (3 + 5) + 60 * 3) * student
    assert train["teacher_flops"] == 60 * (1 + 3) * teacher
    assert values["train/flops/teacher"] == train["teacher_flops"]
    assert train["teacher_cache"] == {}


def test_the_teacher_is_reported_as_it_was_and_as_it_is(tmp_path: Path) -> None:
    method = {**META, "teacher_optimizer": {"kind": "sgd", "lr": 5.0}}
    assignment = stage(tmp_path, teacher=True, recipe={**RECIPE, "epochs": 8, "method": method})
    cache = CachePlace(folder=str(tmp_path / "cache"))
    played = play(assignment.model_copy(update={"teacher_cache": cache}), tmp_path)
    assert isinstance(played.word, Finished), played.word
    found = report(tmp_path)
    assert "learners" not in found
    assert found["teacher"]["nll"] != found["teacher"]["before"]["nll"]
    assert found["epochs"]["last"]["kl"] == pytest.approx(found["student"]["kl"], rel=1e-4)
    evaluated = [each.values["eval/kl"] for each in played.of(Metrics) if "eval/kl" in each.values]
    assert evaluated[-1] == pytest.approx(found["student"]["kl"], rel=1e-4)
    assert "the outputs of 'teacher' are not cached" in " ".join(messages(played))
    assert any(each.values.get("train/teacher/lr") == 5.0 for each in played.of(Metrics))


def test_evaluations_compare_with_the_teacher_of_that_moment() -> None:
    scene = Scene()
    scene.state.student.float(), scene.teacher.float()
    job = JobSpec.model_validate(document(teacher=True, recipe=RECIPE))
    held = whole_split({"images": torch.randn(5, 1, 4, 4)}, torch.zeros(5, dtype=torch.int64))
    evaluator = task_for(job.task).evaluator(job, HeldOut(held), {}, {"teacher": lambda: scene.teacher}, {})

    def measured() -> float:
        return evaluator.evaluate(scene.state.student).evaluation.metrics["kl"]

    def expected() -> float:
        p, q = (model(held.inputs["images"]).log_softmax(-1) for model in (scene.teacher, scene.state.student))
        return float(F.kl_div(q, p, log_target=True, reduction="batchmean").detach())

    assert measured() == pytest.approx(expected(), rel=1e-4)
    with torch.no_grad():
        for weight in scene.teacher.parameters():
            weight.mul_(2.0)
    assert measured() == pytest.approx(expected(), rel=1e-4)
    evaluator = evaluator.beside({"teacher": scene.teacher})
    assert measured() == pytest.approx(expected(), rel=1e-4)
    assert evaluator.teacher_outputs is evaluator.teacher_outputs  # nothing changes any more


def messages(played: Played) -> list[str]:
    return [each.message for each in played.of(Log)]


def test_a_class_with_a_single_sample_is_warned_of_by_name(tmp_path: Path) -> None:
    assignment = stage(tmp_path, teacher=True, recipe=RECIPE)
    with_rare_class(tmp_path / "data.npz")
    played = play(assignment, tmp_path)
    assert isinstance(played.word, Finished), played.word
    assert any("single sample" in each and "'3'" in each and "kept back" in each for each in messages(played))


def with_rare_class(path: Path) -> None:
    arrays = dict(np.load(path))
    labels = np.arange(len(arrays["y"])) % 3
    labels[0] = 3
    np.savez(path, x=arrays["x"], y=labels)


def test_the_quiz_is_none_of_what_is_trained_on_or_evaluated(tmp_path: Path) -> None:
    ran(tmp_path, recipe=RECIPE)
    ours, theirs = (Split(tmp_path, recipe) for recipe in (RECIPE, {"losses": LOSSES_OF_JOBS}))
    assert (len(ours.train), len(ours.quiz), len(ours.held)) == (36, 4, 10)
    assert ours.held == theirs.held
    assert not ours.train & ours.quiz
    assert ours.train | ours.quiz == theirs.train


class Split:
    """The samples of a job, each as bytes."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        job = JobSpec.model_validate(document(teacher=True, recipe=recipe))
        paths = {"data": folder / "data.npz", "teacher": folder / "teacher"}
        described = {"teacher": read_teacher_config(folder / "teacher", "teacher")}
        data = task_for(job.task).load(job, paths, described, 3)
        self.train, self.held = as_bytes(data.train), as_bytes(data.eval)
        self.quiz = as_bytes(data.kept_back) if data.kept_back else set()


def as_bytes(batch: Batch) -> set[bytes]:
    return {sample.numpy().tobytes() for sample in batch.inputs["images"]}


def test_a_single_training_sample_leaves_none_for_the_quiz() -> None:
    job = JobSpec.model_validate(document(teacher=True, recipe=RECIPE))
    task = task_for(job.task)
    assert isinstance(task, Classification)
    single = whole_split({"images": torch.zeros(1, 1, 4, 4)}, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(UserError, match="two or more") as refused:
        keep_back(task, single, job, 3)
    assert refused.value.param == "data.train"


def test_what_becomes_nan_in_the_pilot_ends_the_job_with_its_step(tmp_path: Path) -> None:
    played = play(stage(tmp_path, teacher=True, recipe={**RECIPE, "method": {**META, "pilot_lr": 1e38}}), tmp_path)
    word = played.word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.step) == ("user", "nan_loss", 1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"recipe": {**RECIPE, "accumulate": 2}}, "recipe.accumulate"),
        ({"recipe": {**RECIPE, "compile": True}}, "recipe.compile"),
        (
            {"recipe": {**RECIPE, "precision": "bf16", "method": {"kind": "meta", "order": "finite-difference"}}},
            "recipe.method.order",
        ),
        ({"recipe": {**RECIPE, "stages": [{"losses": [{"kind": "kd"}], "epochs": 1}]}}, "recipe.stages"),
        ({"recipe": {**RECIPE, "losses": [{"kind": "cross-entropy"}]}}, "recipe.losses"),
        ({"recipe": {**RECIPE, "losses": [{"kind": "kd"}, {"kind": "tvd"}]}}, "recipe.losses[1].kind"),
        (
            {"recipe": {**RECIPE, "losses": [{"kind": "hint", "pairs": [{"teacher": "2", "student": "2"}]}]}},
            "recipe.losses[0].kind",
        ),
        ({"recipe": RECIPE, "task": "causal-lm"}, "recipe.method.kind"),
        (
            {"recipe": RECIPE, "resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}},
            "resources.sharding",
        ),
        ({"recipe": RECIPE, "teachers": [{"model": "a", "name": "a"}, {"model": "b", "name": "b"}]}, "teachers"),
        ({"recipe": RECIPE, "teachers": [{"model": "a", "precision": "bf16"}]}, "teachers[0].precision"),
        ({"recipe": RECIPE, "teacher_cache": {"store": "top-k", "k": 2}}, "teacher_cache"),
        (
            {"recipe": {**RECIPE, "method": {"kind": "meta", "teacher_optimizer": {"kind": "normalized-gd"}}}},
            "recipe.method.teacher_optimizer.kind",
        ),
        (
            {
                "recipe": {
                    **RECIPE,
                    "method": {
                        "kind": "meta",
                        "teacher_optimizer": {"kind": "sgd", "lr": 1, "groups": [{"match": "a", "lr": 0}]},
                    },
                }
            },
            "recipe.method.teacher_optimizer.groups",
        ),
    ],
)
def test_fields_that_do_not_fit_it_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    job = JobSpec.model_validate(document(**{"teacher": "teachers" not in changes, **changes}))
    assert field in [problem.param for problem in find_problems(job)]


@pytest.mark.parametrize("order", ["second", "finite-difference"])
def test_operations_are_about_those_that_torch_counts(order: str) -> None:
    scene, other = Scene(Mlp(hidden=[64] * 8), order=order), Scene(Mlp(hidden=[64] * 8))
    student, teacher = (network_cost(model.config).flops for model in (scene.state.student, scene.teacher))
    batch, quiz = len(scene.stage.batches.at(0)), len(scene.quiz.at(0))
    with FlopCounterMode(display=False) as plain:
        other.take_plainly()
    with FlopCounterMode(display=False) as counter:
        scene.take()
    expected = (5 * batch + 3 * quiz) * student + 3 * batch * teacher
    assert counter.get_total_flops() - plain.get_total_flops() == pytest.approx(expected, rel=0.03)
