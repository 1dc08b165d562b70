"""One job from its assignment to its last word."""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.cost import student_cost
from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan, plan_training
from worker.data.batches import Batch, Batches
from worker.data.images import ImageTask, load_images
from worker.errors import CapacityError, JobError, SystemFault
from worker.losses.objective import Objective
from worker.protocol import Assignment, Failed, Finished, Log, Metrics, PhaseBegan, Stopped
from worker.teachers import Teacher, load_teacher, read_teacher_config
from worker.trainer import checkpoint
from worker.trainer.bundle import Trained, write_bundle
from worker.trainer.evaluate import judge, predict
from worker.trainer.loop import Course, train
from worker.trainer.machine import choose_device, choose_threads
from worker.trainer.meter import diverged
from worker.trainer.state import TrainState, initial_state
from worker.trainer.watch import Send, Stop, Supervision


class _Inputs(NamedTuple):
    task: ImageTask
    teacher: Teacher | None
    teacher_folder: Path | None


def run(assignment: Assignment, folder: Path, send: Send, stop: Stop) -> Finished | Stopped | Failed:
    """Do the work staged in `folder`: never raises; the last word is returned, all before it goes to `send`."""
    try:
        return _run(assignment, folder, send, stop)
    except Exception as error:
        problem = _explain(error)
        if problem.__cause__ is not None or problem is not error:
            traceback.print_exc(file=sys.stderr)
        told = {"code": problem.code, "message": problem.message, "param": problem.param, "step": problem.step}
        return Failed(fault=problem.fault, **told)


def _run(assignment: Assignment, folder: Path, send: Send, stop: Stop) -> Finished | Stopped:
    job, device = assignment.spec, choose_device()
    seed = _seed_of(job)
    inputs = _load_inputs(job, {name: folder / path for name, path in assignment.inputs.items()}, seed, device)
    for note in inputs.task.notes:
        send(Log(level="warning", message=note))
    train_samples = len(inputs.task.train.labels)
    state = initial_state(job.recipe, inputs.task.model, seed, device)
    if assignment.resume is not None:
        _restore(state, job, train_samples, folder / assignment.resume)
    plan = plan_training(job.recipe, train_samples)
    batches = Batches(inputs.task.train, job.recipe.batch_size, seed)
    course = Course(job.recipe, plan, batches, Objective(job.recipe.losses), inputs.teacher, device)
    judges = _Judges(job, inputs)
    choose_threads(_micro_batch_flops(job, plan, inputs), device)
    send(PhaseBegan(phase="training"))
    watch = Supervision(job, plan, folder, send, stop, judges.evaluate, state)
    if not train(course, state, watch):
        return Stopped(step=state.step)
    send(PhaseBegan(phase="evaluating"))
    send(Metrics(step=state.step, values=judges.evaluate(state)))
    if stop():
        watch.save(state)
        return Stopped(step=state.step)
    send(PhaseBegan(phase="exporting"))
    teacher = inputs.teacher.model if inputs.teacher else None
    trained = Trained(
        job, plan, state.judged, teacher, inputs.teacher_folder, state.seconds, inputs.task.eval, judges.teacher_logits
    )
    return Finished(artifacts=write_bundle(trained, folder, device), step=state.step)


class _Judges:
    """Evaluates students on the held-out samples; the teacher is asked once."""

    def __init__(self, job: JobSpec, inputs: _Inputs) -> None:
        self._bins, self._samples, self._teacher = job.evaluation.ece_bins, inputs.task.eval, inputs.teacher
        self._teacher_logits: Tensor | None = None

    @property
    def teacher_logits(self) -> Tensor | None:
        """The teacher's logits (N, C) on the CPU."""
        if self._teacher_logits is None and self._teacher is not None:
            self._teacher_logits = predict(self._teacher.model, self._samples.images)
        return self._teacher_logits

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Metrics of the student as it is now, by their name in the job's metrics; raises UserError (`nan_loss`)."""
        logits = predict(state.judged, self._samples.images)
        if not bool(logits.isfinite().all()):
            raise diverged(f"the logits of held-out samples are not finite after step {state.step}", state.step)
        found = judge(logits, self._samples.labels, self._bins, self.teacher_logits)
        return {f"eval/{name}": value for name, value in found.items()}


def _load_inputs(job: JobSpec, paths: dict[str, Path], seed: int, device: torch.device) -> _Inputs:
    teacher_folder = paths[job.teacher.model] if job.teacher else None
    described = read_teacher_config(teacher_folder) if teacher_folder else None
    task = load_images(job, paths, described, seed)
    teacher = load_teacher(teacher_folder).to(device) if teacher_folder else None
    train, evaluation = (Batch(*(part.to(device) for part in batch)) for batch in (task.train, task.eval))
    return _Inputs(task._replace(train=train, eval=evaluation), teacher, teacher_folder)


def _micro_batch_flops(job: JobSpec, plan: TrainingPlan, inputs: _Inputs) -> int:
    model = inputs.task.model
    samples = -(-min(plan.batch_size, plan.train_samples) // job.recipe.accumulate)
    return samples * student_cost(model.architecture, model.input, model.classes).flops


def _seed_of(job: JobSpec) -> int:
    if job.seed is None:
        raise SystemFault("invalid_assignment", "the job has no seed")
    return job.seed


def _restore(state: TrainState, job: JobSpec, train_samples: int, folder: Path) -> None:
    try:
        checkpoint.restore(state, job, train_samples, folder)
    except checkpoint.CheckpointError as error:
        raise SystemFault("bad_checkpoint", str(error)) from error


def _explain(error: Exception) -> JobError:
    """What an exception means for the job; nothing internal is told."""
    if isinstance(error, JobError):
        return error
    if _is_out_of_memory(error):
        return CapacityError("out_of_memory", "memory ran out; a smaller batch_size or a larger accumulate needs less")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return CapacityError("disk_full", "the worker's disk is full")
    return SystemFault("internal_error", "the trainer met an error of its own; its log has the details")


def _is_out_of_memory(error: Exception) -> bool:
    """torch reports a failed allocation on the CPU as a plain RuntimeError, known by its text."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
