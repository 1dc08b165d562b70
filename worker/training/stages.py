"""Builds the stages of a job, each with its objective, for the same student, teachers and batches, and trains them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import nn

from app.recipe.job import JobSpec
from app.recipe.losses import Loss
from app.recipe.losses.taps import Tap
from app.recipe.optimizers import Optimizer
from app.recipe.plan import TrainingPlan
from worker.data.batches import Batch, Batches
from worker.distributed.ranks import SINGLE_PROCESS, SingleProcess
from worker.errors import SystemFault, UserError
from worker.losses.builder import LossBuilder, Shapes, TeacherSide
from worker.losses.objective import Objective
from worker.optimizers import build_optimizer
from worker.optimizers.groups import unmatched
from worker.students.model import Model, last_layer
from worker.students.recorder import NoSuchModule, Recorder
from worker.tasks.base import Task
from worker.teachers import InProcessTeacher, TeacherSource
from worker.training import checkpoint
from worker.training.compiled import training_forward
from worker.training.label_sample import label_sample
from worker.training.loop import BatchSampler, Monitor, Stage, Step, TrainableModule, take_step, train
from worker.training.state import TrainState
from worker.training.step_inputs import choose_side_stream

DRY_SAMPLES = 2
EXAMPLES = 8
"""Paths of modules that an error names."""


class BeginStage(Protocol):
    """What a training method does before the first step of a later stage of its own; the optimizers are fresh."""

    def __call__(self, stage: Stage, state: TrainState) -> None: ...


class TeacherHandle(NamedTuple):
    """One teacher of a job."""

    model: Model
    recorder: Recorder
    """Records the activations that the job's losses use."""
    source: TeacherSource
    """Source of its outputs: the model itself, or its cache."""


def open_teacher(model: Model, job: JobSpec, name: str) -> TeacherHandle:
    """The model as the teacher called `name`, run in this process; raises UserError (`invalid_job`) for a wrong tap."""
    recorder = open_recorder(model, teacher_taps(job, name), _path(job, name))
    autocast = job.teacher_named(name).precision is None and job.recipe.precision == "bf16"
    return TeacherHandle(model, recorder, InProcessTeacher(model, recorder, autocast=autocast))


def student_taps(job: JobSpec) -> dict[Tap, str]:
    """The modules of the student whose activations the job's losses use, each with the path of the first such loss."""
    return _by_place((path, term.taps().student) for path, term in _terms(job))


def teacher_taps(job: JobSpec, name: str) -> dict[Tap, str]:
    """The modules of the teacher called `name` whose activations the losses use, each with the path of the first
    loss."""
    terms = ((path, term) for path, term in _terms(job) if name in (term.named_teachers().values() or [name]))
    return _by_place((path, term.taps().teacher) for path, term in terms)


def dry_shapes(model: Model, recorder: Recorder, samples: Batch, param: str) -> Shapes:
    """Shapes of the activations for the first samples; raises UserError (`invalid_job`) with `param`."""
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval().forward_hidden(samples.between(0, DRY_SAMPLES).inputs[model.input_key])
        return {tap: activation.shape for tap, activation in recorder.take().items()}
    except NoSuchModule as error:
        raise UserError("invalid_job", f"{param}: {error}", param) from error
    finally:
        model.train(was_training)


def open_recorder(model: Model, taps: Mapping[Tap, str], side: str) -> Recorder:
    """A recorder of `taps`; raises UserError (`invalid_job`) with the path of the loss if the network lacks a
    module."""
    try:
        return Recorder(model.network, taps)
    except NoSuchModule as error:
        raise UserError("invalid_job", f"{side}: {error}", taps[error.tap]) from error


def build_stages(
    task: Task,
    job: JobSpec,
    plan: TrainingPlan,
    batches: Batches,
    state: TrainState,
    teachers: Mapping[str, TeacherHandle],
    seed: int,
    ranks: SingleProcess = SINGLE_PROCESS,
    modules: Mapping[str, nn.Module] = {},
    sampler: BatchSampler | None = None,
) -> list[Stage]:
    """The stages of a job in their order; the trained modules of their losses are added to `state.aux_modules`, and so
    are `modules` by name, which learn in the main training."""
    student, samples = state.student, batches.samples
    recorder = open_recorder(student, student_taps(job), "student")
    sides = {name: _side(by, student, samples, _path(job, name)) for name, by in teachers.items()}
    shapes = dry_shapes(student, recorder, samples, "student")
    builder = LossBuilder(
        shapes,
        sides,
        student.config.outputs,
        seed,
        student_head=last_layer(student),
        codes=None if task.predicts_tokens or student.codebook is None else student.codebook.codes,
        everywhere=lambda value: ranks.sum(value.clone()),
        samples=len(samples),
        classes=_classes_in(samples),
    )
    forward = training_forward(student, job, samples.device)
    objectives = [
        task.objective(losses, builder, job.teacher_shares, job.teacher_weighting, path)
        for path, losses in job.objectives.items()
    ]
    builder.aux_modules.update(modules)
    objectives[-1].trained.extend(modules.values())
    state.aux_modules = builder.aux_modules.to(samples.device)
    trainable = ranks.wrap(TrainableModule(student, state.aux_modules))
    require_matches(job.recipe.optimizers, student, "the student")
    stages: list[Stage] = []
    device, before = samples.device, len(job.recipe.stages)
    side_stream = choose_side_stream(device)
    objectives += [objectives[-1]] * (len(job.recipe.main_stages) - 1)
    for spec, stage_plan, objective in zip(job.recipe.all_stages, plan.stages, objectives, strict=True):
        in_main = len(stages) >= before
        teaching = objective.teachers | (job.recipe.method.batch_teachers() if in_main else frozenset())
        stages.append(
            Stage(
                recipe=job.recipe,
                plan=stage_plan,
                optimizer=spec.optimizer or job.recipe.optimizer,
                schedule=spec.schedule or job.recipe.schedule,
                batches=batches,
                objective=objective,
                teachers={name: teachers[name].source for name in sorted(teaching - {job.trained_teacher})},
                forward=forward,
                recorder=recorder,
                input_key=student.input_key,
                device=device,
                trainable=trainable,
                seed=seed,
                trains_student=spec.trains == "student",
                ranks=ranks,
                side_stream=side_stream,
                sampler=sampler,
                prefetches_teachers=_prefetches_teachers(task, job, objective),
                label_sample=label_sample(job, student) if spec.trains == "student" else None,
            )
        )
    return stages


def _classes_in(samples: Batch) -> int:
    """Classes of the samples' labels, which are numbered from 0; 0: they have no single class each."""
    targets = samples.targets
    return int(targets.max()) + 1 if targets.dtype == torch.int64 and targets.ndim == 1 else 0


def _prefetches_teachers(task: Task, job: JobSpec, objective: Objective) -> bool:
    """Whether teacher outputs are computed ahead: not for language models, whose hidden states of a whole batch are
    large, nor for sharded teachers, nor for activations of a batch that is split because it is large."""
    uses_activations = any(teacher_taps(job, name) for name in objective.teachers)
    divided = job.resources.sharding != "none" or (uses_activations and job.recipe.accumulate > 1)
    return not task.predicts_tokens and not divided


def _side(by: TeacherHandle, student: Model, samples: Batch, param: str) -> TeacherSide:
    shapes = dry_shapes(by.model, by.recorder, samples, param)
    same = by.model.input_key == student.input_key
    return TeacherSide(by.model.network, shapes, same_tokens=same, outputs=by.model.config.outputs)


def fresh_optimizer(stage: Stage, student: Model) -> torch.optim.Optimizer:
    """A new optimizer for a stage; raises UserError (`invalid_job`) if the stage has nothing to train."""
    learning = stage.learning(student)
    if not learning:
        raise UserError("invalid_job", "a stage that trains only terms has no term with weights", "recipe.stages")
    return build_optimizer(stage.optimizer, learning, [student, *stage.objective.trained.children()], _names(student))


def _names(model: Model) -> dict[nn.Parameter, str]:
    """Names of the network's parameters."""
    return {parameter: name for name, parameter in model.network.named_parameters()}


def require_matches(optimizers: Mapping[str, Optimizer], model: Model, side: str) -> None:
    """Raises UserError (`invalid_job`) for a group of one of the `optimizers`, by their paths in the job, that matches
    no parameter of `model`, which `side` names."""
    names = list(_names(model).values())
    for path, spec in optimizers.items():
        for index in unmatched(spec, names):
            inner = ".inner" if spec.stepping is not spec else ""
            param = f"{path}{inner}.groups[{index}].match"
            example = ", ".join(sorted({name.rpartition(".")[0] for name in names})[:EXAMPLES])
            raise UserError(
                "invalid_job", f"{param} matches no parameter of {side}; accepted: paths such as {example}", param
            )


def begin_stage(stage: Stage, state: TrainState) -> None:
    """Build new optimizers for the student and every network that the method trains; raises as `fresh_optimizer`."""
    state.optimizer = fresh_optimizer(stage, state.student)
    for learner in state.learners.values():
        spec, modules = learner.optimizer_spec or stage.optimizer, [learner.model, *learner.aux_modules.values()]
        learner.optimizer = build_optimizer(spec, learner.learning, modules, _names(learner.model))


def enter(
    state: TrainState, job: JobSpec, plan: TrainingPlan, stages: list[Stage], resume: Path | None, ranks: SingleProcess
) -> None:
    """Prepare `state` for its first step: with new optimizers, or from the checkpoint in `resume`. Raises SystemFault
    (`bad_checkpoint`)."""
    if resume is None:
        begin_stage(stages[0], state)
        return
    try:
        record = checkpoint.read_for(job, plan, resume)
        begin_stage(stages[plan.stage_at(record.step)], state)
        checkpoint.restore(state, record, plan, resume, ranks)
    except checkpoint.CheckpointError as error:
        raise SystemFault("bad_checkpoint", str(error)) from error


def wrap_learners(state: TrainState, ranks: SingleProcess) -> None:
    """Wrap the networks that the method trains beside the student, so that they are synchronised or sharded."""
    for learner in state.learners.values():
        learner.trainable = ranks.wrap(TrainableModule(learner.model, learner.aux_modules))


def averages(state: TrainState) -> list[Model]:
    """The moving averages of all trained networks."""
    return [each.model for each in (state.ema, *(other.ema for other in state.learners.values())) if each is not None]


def train_stages(
    stages: list[Stage], plan: TrainingPlan, state: TrainState, monitor: Monitor, main: Step, begin: BeginStage
) -> bool:
    """Train the remaining stages, those of the main training with the step `main`, after a call of `begin` for each but
    the first; false if `monitor` stopped the loop."""
    main_stages = stages[len(stages[0].recipe.stages) :]
    for stage in stages[plan.stage_at(state.step) :]:
        in_main = stage in main_stages
        if state.step == stage.plan.first > 0:
            begin_stage(stage, state)
            if in_main:
                begin(stage, state)
        if not train(stage, state, monitor, main if in_main else take_step):
            return False
    return True


def _path(job: JobSpec, name: str) -> str:
    return next(job.teacher_path(index) for index, teacher in enumerate(job.all_teachers) if teacher.name == name)


def _terms(job: JobSpec) -> Iterator[tuple[str, Loss]]:
    """Every loss of the job, with its path."""
    for path, losses in job.objectives.items():
        yield from ((f"{path}[{index}]", term) for index, term in enumerate(losses))


def _by_place(places: Iterable[tuple[str, tuple[Tap, ...]]]) -> dict[Tap, str]:
    found: dict[Tap, str] = {}
    for path, taps in places:
        for tap in taps:
            found.setdefault(tap, path)
    return found
