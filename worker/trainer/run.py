"""One job from its assignment to its last word."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan, plan_training
from app.recipe.students.model import ModelConfig, TextInput
from worker.bundle.provenance import provenance
from worker.bundle.report import Figures
from worker.bundle.writer import TrainedJob, require_exportable, write_bundle
from worker.data.augment import build_augmenter
from worker.data.batches import Batches
from worker.data.running_text import PackingDir
from worker.data.task_data import TaskData
from worker.data.tokens import TextTokenizer
from worker.distributed.ranks import SINGLE_PROCESS, SingleProcess, is_lost
from worker.errors import CapacityError, JobError, SystemFault
from worker.limits import Subject, is_panic, noted_in, reading
from worker.methods.generation import Interrupted, Opening, figures, place_of
from worker.protocol import Assignment, CachePlace, Failed, Finished, Log, PhaseBegan, Stopped
from worker.students.hugging_face_folder import oddities
from worker.students.leftovers import told
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.shrink import inherit
from worker.students.start import start
from worker.tasks import task_for
from worker.tasks.base import HeldOut, Task, TaskEvaluator
from worker.teachers import load_teacher, read_teacher_config
from worker.teachers.class_places import take_classes
from worker.training import checkpoint
from worker.training.evaluator import Evaluator
from worker.training.fidelity import lower_teachers
from worker.training.flop_counter import FlopCounter, TeacherCost
from worker.training.loop import Monitor, Stage, Step, train
from worker.training.machine import choose_device, choose_threads, room_for_samples
from worker.training.monitor import CHECKPOINTS, NullMonitor, Send, Stop, TrainingMonitor
from worker.training.peak import peak_of
from worker.training.stages import TeacherHandle, build_stages, fresh_optimizer, teach
from worker.training.state import TrainState, fresh_student, initial_state
from worker.training.teacher_caches import TeacherCaches
from worker.training.teacher_checks import check_teachers
from worker.training.warning_log import WarningLog


class _Inputs(NamedTuple):
    task: TaskData
    models: dict[str, Model]
    """Of the teachers, by their names."""
    folders: dict[str, Path]
    """Of their files."""


class _Offered(NamedTuple):
    """Models that the first process can run alone, when it asks for them."""

    evaluated: Callable[[], Model]
    """The student, or the mean of its weights."""
    asked: dict[str, Callable[[], Model]]
    """Teachers as they teach."""
    teachers: dict[str, Callable[[], Model]]


class _Made(NamedTuple):
    """What training needs, all of it as it is at the first step."""

    task: Task
    job: JobSpec
    device: torch.device
    inputs: _Inputs
    plan: TrainingPlan
    state: TrainState
    teachers: dict[str, TeacherHandle]
    stages: list[Stage]
    """The stages."""
    fidelity: dict[str, Figures]
    """Of teachers that teach with fewer bits."""
    answers: dict[str, Tensor]
    """Of the teachers to all held-out samples, as far as they were asked before training."""


STUDENT = Subject("the student", "invalid_architecture", "student")
WHOLE_MACHINE, BUILDING_SECONDS = 1 << 50, 500
"""Bounds on building the student: a large one is nobody's fault, but must leave room to the others on the machine."""
PACKED = "packed"
"""Begins the name of a folder in which texts are packed."""
TrainerResult = Finished | Stopped | Failed
RANK_LOST = "rank_lost"
"""Code of the failure of a process that misses another one, which knows better what happened."""


def perform(assignment: Assignment, folder: Path, send: Send, stop: Stop) -> TrainerResult:
    """`run` in this process or, where the job asks for several, in processes of their own."""
    if assignment.spec.resources.size == 1:
        return run(assignment, folder, send, stop)
    from worker.distributed.launch import launch  # torch's launcher takes a while to import

    return launch(assignment, folder, send, stop)


def run(
    assignment: Assignment, folder: Path, send: Send, stop: Stop, ranks: SingleProcess = SINGLE_PROCESS
) -> TrainerResult:
    """Do the work staged in `folder`: never raises; the last word is returned, all before it goes to `send`.

    One of several `ranks` does its share of it: the first one speaks, saves and exports, the others leave with
    `Stopped` once training is over.
    """
    try:
        with noted_in(folder):
            return _run(assignment, folder, send, stop, ranks)
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        return failed(error)


def failed(error: BaseException) -> Failed:
    """The last word after an error that is being handled; what is not for its owner goes to stderr."""
    problem = _explain(error)
    if problem.__cause__ is not None or problem is not error:
        traceback.print_exc(file=sys.stderr)
    told = {"code": problem.code, "message": problem.message, "param": problem.param, "step": problem.step}
    return Failed(fault=problem.fault, **told)


def _run(assignment: Assignment, folder: Path, send: Send, stop: Stop, ranks: SingleProcess) -> Finished | Stopped:
    warnings, task = WarningLog(send), task_for(assignment.spec.task)
    with TeacherCaches(task, assignment.spec, assignment.teacher_cache, warnings) as caches:
        return _work(task, assignment, folder, warnings, stop, ranks, caches)


def _work(
    task: Task,
    assignment: Assignment,
    folder: Path,
    send: WarningLog,
    stop: Stop,
    ranks: SingleProcess,
    caches: TeacherCaches,
) -> Finished | Stopped:
    made = _prepare(task, assignment, folder, send, stop, ranks, caches)
    job, plan, state = made.job, made.plan, made.state
    try:
        steps = _written_steps(made, place_of(job, assignment.teacher_cache, folder), send, stop)
    except Interrupted:
        return Stopped(step=state.step)
    offered = _offer(job, made.inputs, state, ranks)
    held_out = _held_out(made, offered)
    evaluator = Evaluator(job, task.main_metric, held_out, offered.evaluated)
    save = ranks.collectively(lambda: checkpoint.save(state, job, plan, folder / CHECKPOINTS, ranks))
    account = _open_account(made, ranks.size)
    send(PhaseBegan(phase="training"))
    watch = TrainingMonitor(job, plan, folder, send, stop, evaluator.evaluate, state, caches, save, account)
    done = _train(made.stages, plan, state, watch if ranks.first else NullMonitor(), steps)
    caches.add_up(ranks.sum)
    if not (done and ranks.first):
        if done:
            ranks.serve()
        return Stopped(step=state.step)
    watch.save(state)  # whatever happens from here on, nothing is trained again
    send(PhaseBegan(phase="evaluating"))
    watch.evaluate(state)
    if stop():
        ranks.dismiss()
        return Stopped(step=state.step)
    send(PhaseBegan(phase="exporting"))
    trained = _trained(made, offered, held_out, caches, account)
    trained = trained._replace(sources=provenance(assignment, folder), warnings=send.figures())
    ranks.dismiss()
    artifacts = write_bundle(trained, folder, made.device, lambda message: send(Log(level="warning", message=message)))
    return Finished(artifacts=artifacts, step=state.step)


def _prepare(
    task: Task,
    assignment: Assignment,
    folder: Path,
    send: WarningLog,
    stop: Stop,
    ranks: SingleProcess,
    caches: TeacherCaches,
) -> _Made:
    """Data and models as training finds them at its first step here."""
    job, device = assignment.spec, choose_device()
    seed = _seed_of(job)
    paths = {name: folder / path for name, path in assignment.inputs.items()}
    inputs = _load_inputs(task, job, paths, seed, device, _workplace(folder, send, ranks))
    for note in inputs.task.notes:
        send.warn("odd_data", note)
    plan = plan_training(job.recipe, inputs.task.train.samples)
    with reading(STUDENT, WHOLE_MACHINE, BUILDING_SECONDS):
        student = fresh_student(inputs.task.model, seed)
    student.input_key = inputs.task.input_key or student.input_key
    student = start(inherit(student, job, inputs.models), job, paths, partial(send.warn, "fresh_layer")).to(device)
    for name, model in (*inputs.models.items(), ("the student", student)):
        if model.ignored:
            send(Log(message=f"{name}: {told(model.ignored)}"))
    for name, path in inputs.folders.items():
        for note in oddities(path):
            send.warn("odd_model", f"{name}: {note}")
    checked = check_teachers(task, job, inputs.models if ranks.first else {}, inputs.folders, inputs.task, seed)
    for warning in checked.warnings:
        send.warn(*warning)
    fidelity = lower_teachers(task, job, inputs.models, inputs.task.eval)
    taught = {name: teach(model, job, name) for name, model in inputs.models.items()}
    state = initial_state(job.recipe, student)
    augment = build_augmenter(job, inputs.task, seed, points=task.moves_points)
    batches = Batches(inputs.task.train, job.recipe.batch_size, seed, augment, ranks.share)
    teachers = caches.give(taught, inputs.folders, inputs.task, batches.augment)
    stages = build_stages(task, job, plan, batches, state, teachers, seed, ranks)
    for model in (*inputs.models.values(), *([state.ema.model] if state.ema else [])):
        ranks.split(model)
    caches.label(batches, teachers, stop, ranks)
    _enter(state, job, plan, stages, folder / assignment.resume if assignment.resume else None, ranks)
    return _Made(task, job, device, inputs, plan, state, teachers, stages, fidelity, checked.outputs)


def _trained(
    made: _Made, offered: _Offered, held_out: TaskEvaluator, caches: TeacherCaches, account: FlopCounter
) -> TrainedJob:
    """What the bundle is written of."""
    job, task, state = made.job, made.inputs.task, made.state
    others = _other_tokens(job, task)
    teachers = {name: offered.teachers[name]() for name in made.inputs.folders}
    return TrainedJob(
        task=made.task,
        job=job,
        plan=made.plan,
        state=replace(state, student=offered.evaluated(), ema=None),
        teachers={name: (teachers[name], folder) for name, folder in made.inputs.folders.items()},
        samples=task.eval,
        evaluator=held_out.beside(teachers),
        teacher_cache=caches.figures(),
        teacher_fidelity=made.fidelity,
        arithmetic=account.figures(state) | figures(job, state),
        tokenizer=task.readers.student if task.readers else None,
        tokenizers=others,
        alignment={name: task.alignment[reader.input_key] for name, reader in others.items()},
    )


def _offer(job: JobSpec, inputs: _Inputs, state: TrainState, ranks: SingleProcess) -> _Offered:
    asked = {name: ranks.offer_model(partial(_same, model)) for name, model in inputs.models.items()}
    stored = {
        name: partial(_as_stored, model, inputs.folders[name], inputs.task.places.get(name))
        for name, model in inputs.models.items()
        if job.teacher_named(name).lowered
    }
    return _Offered(ranks.offer_model(lambda: state.evaluated), asked, asked | stored)


def _other_tokens(job: JobSpec, task: TaskData) -> dict[str, TextTokenizer]:
    """Tokenizers of teachers that don't read a language model's tokens, by their names."""
    if task.readers is None:
        return {}
    by_name = {teacher.name: task.readers.by_teacher[teacher.reference] for teacher in job.all_teachers}
    return {name: reader for name, reader in by_name.items() if reader.input_key in task.alignment}


def _as_stored(model: Model, folder: Path, places: list[int] | None) -> Model:
    """What a teacher of fewer bits is in its files, on the same device; the report is about that."""
    device = next(model.parameters()).device
    stored = load_teacher(folder, "teacher").to(device).eval()
    if places is not None:
        take_classes(stored, places, model.config.class_names)
    stored.input_key = model.input_key
    return stored


def _held_out(made: _Made, offered: _Offered) -> TaskEvaluator:
    job, data = made.job, made.inputs.task
    require_exportable(job, network_cost(data.model).parameters)
    held_out = HeldOut(data.eval, data.bytes)
    return made.task.evaluator(job, held_out, offered.asked, offered.teachers, made.answers)


def _enter(
    state: TrainState, job: JobSpec, plan: TrainingPlan, stages: list[Stage], resume: Path | None, ranks: SingleProcess
) -> None:
    """Bring `state` to its first step here: with a fresh optimizer, or as the checkpoint left it."""
    if resume is None:
        state.optimizer = fresh_optimizer(stages[0], state.student)
        return
    try:
        record = checkpoint.read_for(job, plan, resume)
        state.optimizer = fresh_optimizer(stages[plan.stage_at(record.step)], state.student)
        checkpoint.restore(state, record, plan, resume, ranks)
    except checkpoint.CheckpointError as error:
        raise SystemFault("bad_checkpoint", str(error)) from error


def _written_steps(made: _Made, place: CachePlace, send: Send, stop: Stop) -> Step | None:
    """The step of the main training where it learns from texts that are written; none: it is the usual one."""
    inputs = made.inputs
    if inputs.task.prompts is None:
        return None
    opening = Opening(made.job, inputs.task.prompts, inputs.models, inputs.folders, place)
    return opening.steps(made.stages[-1], made.state, send, stop)


def _train(
    stages: list[Stage], plan: TrainingPlan, state: TrainState, watch: Monitor, main: Step | None = None
) -> bool:
    """Go through the stages that are left, the last one with the step `main`; false when the watch asked to leave."""
    for stage in stages[plan.stage_at(state.step) :]:
        if state.step == stage.plan.first > 0:
            state.optimizer = fresh_optimizer(stage, state.student)
        if not train(stage, state, watch, main if stage is stages[-1] else None):
            return False
    return True


def _workplace(folder: Path, send: Send, ranks: SingleProcess) -> PackingDir:
    """Processes of one machine map what its first one has packed."""
    own = folder / f"{PACKED}-{ranks.machine}"
    return PackingDir(own, lambda said: send(Log(message=said)), ranks.first_here, ranks.barrier)


def _load_inputs(
    kind: Task, job: JobSpec, paths: dict[str, Path], seed: int, device: torch.device, workplace: PackingDir
) -> _Inputs:
    folders = {teacher.name: paths[teacher.reference] for teacher in job.all_teachers}
    params = {teacher.name: job.teacher_param(index) for index, teacher in enumerate(job.all_teachers)}
    described = {
        origin.reference: read_teacher_config(paths[origin.reference], f"{path}.{origin.source}")
        for path, origin in job.origins.items()
    }
    task = kind.load(job, paths, described, seed, workplace)
    models = {name: load_teacher(folder, params[name]).to(device) for name, folder in folders.items()}
    for teacher in job.all_teachers:
        models[teacher.name].input_key = task.input_key_of(teacher.reference) or models[teacher.name].input_key
        if teacher.name in task.places:
            take_classes(models[teacher.name], task.places[teacher.name], task.model.class_names)
        if job.recipe.channels_last:
            models[teacher.name].to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
    train = task.train.settle(device, room_for_samples(device))
    prompts = task.prompts and task.prompts.to(device)
    return _Inputs(replace(task, train=train, eval=task.eval.to(device), prompts=prompts), models, folders)


def _same(model: Model) -> Model:
    return model


def _open_account(made: _Made, processes: int) -> FlopCounter:
    """Chooses the threads too, which the rate depends on. Of several processes each has a share of the samples, asks
    teachers about as many as the others, and has a rate of its own."""
    job, plan, task = made.job, made.plan, made.inputs.task
    flops = network_cost(task.model).flops * task.train.rows_per_sample
    samples = -(-min(plan.batch_size, plan.train_samples) // (job.recipe.accumulate * processes))
    choose_threads(samples * flops, made.device)
    asked = {
        name: TeacherCost(by.source, processes * network_cost(_as_asked(by.model.config, task)).flops)
        for name, by in made.teachers.items()
    }
    peak = peak_of(made.device, job.recipe.precision)
    peak = peak._replace(flops_per_second=processes * peak.flops_per_second)
    return FlopCounter(job, plan, flops, asked, peak, made.state)


def _as_asked(teacher: ModelConfig, task: TaskData) -> ModelConfig:
    """A teacher that could read longer texts than a language model's sequences, which are those that it is given."""
    given, taken = task.model.input, teacher.input
    if not teacher.predicts_tokens or not (isinstance(given, TextInput) and isinstance(taken, TextInput)):
        return teacher
    return teacher.model_copy(update={"input": taken.model_copy(update={"length": given.length})})


def _seed_of(job: JobSpec) -> int:
    if job.seed is None:
        raise SystemFault("invalid_assignment", "the job has no seed")
    return job.seed


def _explain(error: BaseException) -> JobError:
    """What an exception means for the job; nothing internal is told."""
    if isinstance(error, JobError):
        return error
    if _is_out_of_memory(error):
        return CapacityError("out_of_memory", "memory ran out; a smaller batch_size or a larger accumulate needs less")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return CapacityError("disk_full", "the worker's disk is full")
    if is_lost(error):
        return SystemFault(RANK_LOST, "another process of the job went away")
    return SystemFault("internal_error", "the trainer met an error of its own; its log has the details")


def _is_out_of_memory(error: BaseException) -> bool:
    """torch reports a failed allocation on the CPU as a plain RuntimeError, known by its text."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
