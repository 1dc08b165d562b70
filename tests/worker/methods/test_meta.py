"""A teacher that learns from what its student does in a quiz."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from app.recipe.losses import LOSSES, Kd, Pkd, Tvd
from app.recipe.losses.taps import Tap
from app.recipe.methods.meta import DIFFERENTIABLE
from app.recipe.optimizers import Sgd
from app.recipe.students.architectures import CifarResNet, Mlp, Student, Transformers, Vit
from app.recipe.teachers.teacher import Teacher
from tests.kinds import term
from tests.worker.losses.samples import draw, term_of
from tests.worker.methods.meta_scene import BOTH, LR, PATIENT, PILOT_LR, TEACHER_LR, Scene
from worker.losses import objective as objectives
from worker.losses.builder import LossBuilder
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.outputs import TeacherSignal
from worker.students.model import Model
from worker.students.recorder import Recorder
from worker.training.state import TrainState

STEPS = 3


DROPPING = Transformers(
    config={
        **{"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 8, "patch_size": 2, "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2},
    }
)


VIT = Vit(patch_size=2, width=8, heads=2)


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
