"""A stage, and parts of jobs, for the tests of a teacher that learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from app.recipe.methods.meta import Meta
from app.recipe.students.architectures import Student
from tests.worker.training.test_loop import prepare
from worker.data.batches import Batches, whole_split
from worker.methods.meta import MetaStep
from worker.outputs import TeacherSignal
from worker.students.model import Model
from worker.students.recorder import Recorder
from worker.training.loop import set_rate, take_step
from worker.training.stages import begin_stage, wrap_learners
from worker.training.state import Learner, placeholder_optimizer

META: dict[str, Any] = {"kind": "meta", "teacher_optimizer": {"kind": "sgd", "lr": 0.5}}
LOSSES_OF_JOBS = [{"kind": "cross-entropy", "weight": 0.5}, {"kind": "kd", "weight": 0.5, "temperature": 2.0}]
RECIPE: dict[str, Any] = {"method": META, "losses": LOSSES_OF_JOBS, "epochs": 2}
BOTH: list[dict[str, Any]] = [{"kind": "cross-entropy"}, {"kind": "kd"}]
HIDDEN = {"teacher": "2", "student": "2"}
PATIENT: dict[str, Any] = {"kind": "pkd", "pairs": [HIDDEN]}
"""On the hidden layer of an `mlp`."""
LR, PILOT_LR, TEACHER_LR = 0.1, 0.3, 0.2


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
