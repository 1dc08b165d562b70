"""Single steps of the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from app.recipe.data.sources import ImageData
from app.recipe.job import JobSpec, Recipe
from app.recipe.plan import plan_training
from app.recipe.students.architectures import CifarResNet, Mlp, Student, Vit
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from app.recipe.teachers.teacher import Teacher as TeacherSpec
from worker.data.batches import Batches, whole_split
from worker.errors import UserError
from worker.students.model import Model
from worker.tasks import task_for
from worker.teachers import InProcessTeacher
from worker.training.loop import Stage, set_rate, take_step, train
from worker.training.stages import build_stages, fresh_optimizer, open_teacher
from worker.training.state import TrainState, fresh_student, initial_state

SGD = {"kind": "sgd", "lr": 0.1, "momentum": 0.0}


def prepare(
    student: Student | None = None, teacher: bool = False, first: bool = False, **settings: Any
) -> tuple[Stage, TrainState]:
    losses = [{"kind": "cross-entropy"}, *([{"kind": "kd"}] if teacher else [])]
    recipe = Recipe.model_validate({"losses": losses, "optimizer": SGD, "batch_size": 10, **settings})
    config = ModelConfig(
        architecture=student or Mlp(hidden=[6]),
        input=ImageInput(channels=1, height=4, width=4),
        preprocessing=Preprocessing(mean=[0.0], std=[1.0]),
        classes=3,
    )
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(25, 1, 4, 4, generator=random), torch.randint(3, (25,), generator=random)
    batches = Batches(whole_split({"images": images}, labels), recipe.batch_size, 0)
    job = JobSpec(
        data=ImageData(train="t"),
        student=config.architecture,
        recipe=recipe,
        teacher=TeacherSpec(model="m") if teacher else None,
    )
    torch.manual_seed(1)
    teachers = {"teacher": open_teacher(Model(config), job, "teacher")} if teacher else {}
    state = initial_state(recipe, fresh_student(config, 0))
    stages = build_stages(task_for(job.task), job, plan_training(recipe, 25), batches, state, teachers, 0)
    stage = stages[0 if first else -1]
    state.optimizer = fresh_optimizer(stage, state.student)
    return stage, state


def weights(state: TrainState) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.student.parameters()])


def after_a_step(**settings: Any) -> Tensor:
    stage, state = prepare(**settings)
    take_step(stage, state, stage.step_inputs(0))
    return weights(state)


@pytest.mark.parametrize(
    "student", [Mlp(hidden=[6]), Vit(patch_size=2, width=8, heads=2)], ids=lambda s: s.architecture
)
@pytest.mark.parametrize("accumulate", [2, 3, 10])
def test_splitting_a_batch_does_not_change_the_step(student: Student, accumulate: int) -> None:
    whole = after_a_step(student=student, teacher=True)
    split = after_a_step(student=student, teacher=True, accumulate=accumulate)
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_step_by_the_norm_of_the_gradient() -> None:
    stage, state = prepare(clip_norm=0.01)
    before = weights(state)
    measured = take_step(stage, state, stage.step_inputs(0))
    assert float(measured["grad_norm"]) > 0.01
    assert float((weights(state) - before).norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_generous_bound_changes_nothing() -> None:
    assert torch.equal(after_a_step(clip_norm=1e6), after_a_step())


def test_the_rate_of_the_schedule_reaches_the_optimizer() -> None:
    stage, state = prepare(schedule={"kind": "linear", "warmup_steps": 2}, epochs=2)
    rates = []
    for step in range(stage.plan.end):
        state.step = step
        set_rate(stage, state)
        rates.append(state.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025])


def test_bf16_computes_the_logits_coarsely_but_keeps_float32_weights() -> None:
    coarse, fine = after_a_step(precision="bf16"), after_a_step()
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, fine)
    torch.testing.assert_close(coarse, fine, rtol=0.05, atol=0.01)


def test_channels_last_changes_the_layout_and_not_the_step() -> None:
    student = CifarResNet(depth=8, width=4)
    torch.testing.assert_close(
        after_a_step(student=student, channels_last=True), after_a_step(student=student), rtol=1e-4, atol=1e-5
    )
    _, state = prepare(student=student, channels_last=True)
    kernel = state.student.network.get_submodule("conv").weight
    assert isinstance(kernel, Tensor)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_student_takes_the_same_step() -> None:
    torch.testing.assert_close(after_a_step(teacher=True, compile=True), after_a_step(teacher=True))


def test_a_stage_that_trains_terms_leaves_the_student_alone() -> None:
    stage = {"losses": [{"kind": "cross-entropy"}], "epochs": 1, "trains": "terms"}
    with pytest.raises(UserError, match="no term with weights"):
        prepare(stages=[stage], first=True)


def test_the_teacher_is_left_as_it_was() -> None:
    stage, state = prepare(teacher=True)
    teacher = stage.teachers["teacher"]
    assert isinstance(teacher, InProcessTeacher)
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    take_step(stage, state, stage.step_inputs(0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_the_average_is_normalised_by_the_number_of_steps() -> None:
    stage, state = prepare(ema_decay=0.9)
    assert state.ema is not None
    seen = []
    for step in range(3):
        state.step = step
        take_step(stage, state, stage.step_inputs(step))
        seen.append(weights(state))
    shares = torch.tensor([0.9**2, 0.9, 1.0])
    expected = (torch.stack(seen) * shares[:, None]).sum(0) / shares.sum()
    found = torch.nn.utils.parameters_to_vector(state.ema.model.parameters())
    torch.testing.assert_close(found, expected)
    assert state.evaluated is state.ema.model


def test_the_loop_ends_with_the_plan_or_when_its_monitor_stops_it() -> None:
    class Monitor:
        def __init__(self, last: int) -> None:
            self.steps: list[int] = []
            self.last = last

        def step_done(self, state: TrainState, values: dict[str, Tensor]) -> bool:
            self.steps.append(state.step)
            return state.step == self.last

    stage, state = prepare(epochs=2)
    patient, impatient = Monitor(99), Monitor(4)
    assert not train(stage, state, impatient)
    assert train(stage, state, patient)
    assert (impatient.steps, patient.steps) == ([1, 2, 3, 4], [5, 6])
