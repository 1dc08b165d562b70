"""The way of a job, from its assignment to its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.plan import plan_training
from app.recipe.tasks.task import CAUSAL_LM
from app.recipe.teachers.cache import NoCache
from worker.bundle.provenance import provenance
from worker.bundle.writer import TrainedJob, require_exportable, write_bundle
from worker.data.augment import build_augmenter
from worker.data.batches import Batches
from worker.distributed.failures import failed
from worker.distributed.ranks import SINGLE_PROCESS, SingleProcess
from worker.errors import SystemFault
from worker.limits import is_panic, noted_in
from worker.machine import choose_device
from worker.methods import build_method
from worker.methods.base import Interrupted, MethodInputs
from worker.protocol import (
    Assignment,
    CachePlace,
    Finished,
    Log,
    PhaseBegan,
    Send,
    ShouldStop,
    Stopped,
    TrainerResult,
)
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.tasks.language import HeldOutTexts, LanguageBundleWriter, LanguageEvaluator
from worker.training import checkpoint
from worker.training.evaluator import Evaluator
from worker.training.fidelity import lower_teachers
from worker.training.flop_counter import open_flop_counter, student_flops
from worker.training.job_inputs import (
    JobInputs,
    build_student,
    load_inputs,
    log_oddities,
    other_tokens,
    packing_dir,
    stored_teacher,
)
from worker.training.monitor import CHECKPOINTS, NullMonitor, TrainingMonitor
from worker.training.stages import averages, build_stages, enter, teach, train_stages, wrap_learners
from worker.training.state import TrainState, initial_state
from worker.training.teacher_caches import TeacherCaches
from worker.training.teacher_checks import check_teachers
from worker.training.warning_log import WarningLog

TEXTS = "texts"
"""Folder of the texts that a teacher generates, within that of its job, where none are kept for other jobs."""


def run(
    assignment: Assignment, folder: Path, send: Send, stop: ShouldStop, ranks: SingleProcess = SINGLE_PROCESS
) -> TrainerResult:
    """Do the work staged in `folder`: never raises; the result is returned, all before it goes to `send`.

    One of several `ranks` does its share of it: the first one reports, saves and exports, the others leave with
    `Stopped` once training is over.
    """
    log = WarningLog(send)
    try:
        with noted_in(folder), TeacherCaches(assignment.spec, assignment.teacher_cache, log) as caches:
            return train_job(assignment, folder, log, stop, ranks, caches)
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        return failed(error)


def train_job(
    assignment: Assignment,
    folder: Path,
    log: WarningLog,
    stop: ShouldStop,
    ranks: SingleProcess,
    caches: TeacherCaches,
) -> Finished | Stopped:
    """Read, build, train, evaluate, export, in this order; `caches` holds what is kept of the teachers' outputs."""
    job, device, seed = assignment.spec, choose_device(), _seed_of(assignment.spec)

    # What the job reads
    paths = {name: folder / path for name, path in assignment.inputs.items()}
    inputs = load_inputs(job, paths, seed, device, packing_dir(folder, log, ranks))
    task, plan = inputs.task, plan_training(job.recipe, inputs.task.train.samples)
    student = build_student(job, inputs, paths, seed, device, log)
    log_oddities(inputs, student, log)
    checked = check_teachers(job, inputs.teachers if ranks.first else {}, inputs.folders, task, seed)
    for warning in checked.warnings:
        log.warn(*warning)
    fidelity = lower_teachers(job, inputs.teachers, task.eval)
    require_exportable(job, network_cost(task.model).parameters)

    # What training changes
    place = _texts_place(job, assignment.teacher_cache, folder)
    flops = student_flops(task)
    method = build_method(
        MethodInputs(job, task, student, flops, inputs.teachers, inputs.folders, place, seed, log, stop)
    )
    state = initial_state(job.recipe, student)
    state.learners, state.method = method.learners(), method.State()

    # What its steps need
    handles = {name: teach(model, job, name) for name, model in inputs.teachers.items()}
    batches = Batches(task.train, job.recipe.batch_size, seed, build_augmenter(job, task, seed), ranks.share)
    teachers = caches.give(handles, inputs.folders, task, batches.augment)
    stages = build_stages(job, plan, batches, state, teachers, seed, ranks)
    wrap_learners(state, ranks)
    for model in (*inputs.teachers.values(), *averages(state)):
        ranks.split(model)
    caches.label(batches, teachers, stop, ranks)

    # As the checkpoint left it
    enter(state, job, plan, stages, folder / assignment.resume if assignment.resume else None, ranks)
    try:
        step = method.step(stages[-1], state)
    except Interrupted:
        return Stopped(step=state.step)

    # Models that the first process can run alone
    evaluated = ranks.offer_model(lambda: state.evaluated)
    live = {name: ranks.offer_model(partial(_same, model)) for name, model in inputs.teachers.items()}
    lowered = [teacher.name for teacher in job.all_teachers if teacher.lowered]
    stored = live | {name: stored_teacher(inputs, name) for name in lowered}
    learners = {name: ranks.offer_model(partial(_evaluated, state, name)) for name in state.learners}

    evaluator = _evaluator(job, inputs, evaluated, live, stored, checked.outputs)
    save = ranks.collectively(lambda: checkpoint.save(state, job, plan, folder / CHECKPOINTS, ranks))
    counter = open_flop_counter(job, plan, task, teachers, state, method.flops, ranks.size)
    log(PhaseBegan(phase="training"))
    monitor = TrainingMonitor(job, plan, folder, log, stop, evaluator.evaluate, state, caches, save, counter)
    done = train_stages(stages, plan, state, monitor if ranks.first else NullMonitor(), step)
    caches.add_up(ranks.sum)
    if not (done and ranks.first):
        if done:
            ranks.serve()
        return Stopped(step=state.step)

    monitor.save(state)  # whatever happens from here on, nothing is trained again
    log(PhaseBegan(phase="evaluating"))
    monitor.evaluate(state)
    if stop():
        ranks.dismiss()
        return Stopped(step=state.step)

    log(PhaseBegan(phase="exporting"))
    tokenizers = other_tokens(job, task)
    trained = TrainedJob(
        job=job,
        plan=plan,
        state=replace(state, student=evaluated(), ema=None),
        teachers={name: (stored[name](), path) for name, path in inputs.folders.items()},
        learners={name: get() for name, get in learners.items()},
        samples=task.eval,
        teacher_outputs=evaluator.teacher_logits,
        teacher_cache=caches.figures(),
        teacher_fidelity=fidelity,
        arithmetic=counter.figures(state) | method.figures(state),
        tokenizer=task.readers.student if task.readers else None,
        tokenizers=tokenizers,
        alignment={name: task.alignment[reader.input_key] for name, reader in tokenizers.items()},
        bytes=task.bytes,
        sources=provenance(assignment, folder),
        warnings=log.figures(),
    )
    ranks.dismiss()
    kind = LanguageBundleWriter if job.task == CAUSAL_LM else None
    artifacts = write_bundle(trained, folder, device, kind, lambda text: log(Log(level="warning", message=text)))
    return Finished(artifacts=artifacts, step=state.step)


def _seed_of(job: JobSpec) -> int:
    if job.seed is None:
        raise SystemFault("invalid_assignment", "the job has no seed")
    return job.seed


def _evaluator(
    job: JobSpec,
    inputs: JobInputs,
    evaluated: Callable[[], Model],
    live: Mapping[str, Callable[[], Model]],
    stored: Mapping[str, Callable[[], Model]],
    outputs: Mapping[str, Tensor],
) -> Evaluator | LanguageEvaluator:
    """`live` are the teachers as they teach, `stored` as they are in their files; `outputs` are those that some have
    given for all held-out samples before. Of a task that is measured token by token, nothing of them is kept."""
    task = inputs.task
    if job.task != CAUSAL_LM:
        return Evaluator(job, task.eval, evaluated, stored, outputs)
    held_out = HeldOutTexts(task.eval, task.bytes)
    return LanguageEvaluator(job, held_out, task.input_key or "", evaluated, list(live.values()))


def _texts_place(job: JobSpec, shared: CachePlace | None, folder: Path) -> CachePlace:
    """Where texts are kept: with what all jobs keep of their teachers, or for this job alone in its folder."""
    if shared is None or isinstance(job.teacher_cache, NoCache):
        return CachePlace(folder=str(folder / TEXTS))
    return shared


def _same(model: Model) -> Model:
    return model


def _evaluated(state: TrainState, name: str) -> Model:
    return state.learners[name].evaluated
