"""Runs a job, from its assignment to its result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from app.recipe.job import JobSpec
from app.recipe.plan import plan_training
from app.recipe.teachers.cache import NoCache
from worker.bundle.export import onnx_latency
from worker.bundle.provenance import provenance
from worker.bundle.writer import TrainedJob, require_exportable, write_bundle
from worker.data.augment import build_augmenter
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
from worker.tasks import task_for
from worker.tasks.base import HeldOut
from worker.training import checkpoint
from worker.training.closed_form import fit_head, fit_thresholds, require_every_class
from worker.training.evaluator import Evaluator
from worker.training.fidelity import lower_teachers
from worker.training.flop_counter import open_flop_counter, student_flops
from worker.training.job_inputs import (
    build_student,
    load_inputs,
    log_oddities,
    other_tokens,
    packing_dir,
    stored_teacher,
)
from worker.training.mining import mine_negatives
from worker.training.monitor import CHECKPOINTS, NullMonitor, TrainingMonitor
from worker.training.sampling import open_sampling
from worker.training.stages import averages, build_stages, enter, open_teacher, train_stages, wrap_learners
from worker.training.state import TrainState, initial_state
from worker.training.teacher_caches import TeacherCaches
from worker.training.teacher_checks import check_teachers
from worker.training.warning_log import WarningLog

TEXTS = "texts"
"""Folder of the texts that a teacher generates, within that of its job, if there is no cache for other jobs."""


def run(
    assignment: Assignment, folder: Path, send: Send, stop: ShouldStop, ranks: SingleProcess = SINGLE_PROCESS
) -> TrainerResult:
    """Run the job staged in `folder`: never raises; the result is returned, all earlier messages go to `send`.

    With several `ranks`, each does its share: the first one reports, saves and exports, the others return
    `Stopped` after training.
    """
    log, job = WarningLog(send), assignment.spec
    try:
        with noted_in(folder), TeacherCaches(task_for(job.task), job, assignment.teacher_cache, log) as caches:
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
    """Read, build, train, evaluate, export, in this order; `caches` holds the cached teacher outputs."""
    job, device, seed = assignment.spec, choose_device(), _seed_of(assignment.spec)
    task = task_for(job.task)

    # What the job reads
    paths = {name: folder / path for name, path in assignment.inputs.items()}
    inputs = load_inputs(task, job, paths, seed, device, packing_dir(folder, log, ranks))
    require_every_class(inputs.data.model, inputs.data.train)
    student = build_student(job, inputs, paths, seed, device, log)
    log_oddities(inputs, student, log)
    data = mine_negatives(job, inputs, student, log, stop, ranks)
    if data is None:
        return Stopped(step=0)
    plan = plan_training(job.recipe, data.train.samples)
    checked = check_teachers(task, job, inputs.teachers if ranks.first else {}, inputs.folders, data, seed)
    for warning in checked.warnings:
        log.warn(*warning)
    fidelity = lower_teachers(task, job, inputs.teachers, data.eval)
    require_exportable(job, network_cost(data.model).parameters)

    # What training changes
    place = _texts_place(job, assignment.teacher_cache, folder)
    flops = student_flops(data, job.recipe.views)
    method = build_method(
        MethodInputs(job, data, student, flops, inputs.teachers, inputs.folders, place, seed, log, stop)
    )
    state = initial_state(job.recipe, student)
    state.learners, state.method = method.learners(), method.State()

    # What its steps need
    handles = {name: open_teacher(model, job, name) for name, model in inputs.teachers.items()}
    augment = build_augmenter(job, data, seed, points=task.moves_points)
    resumed = assignment.resume is not None
    sampling = open_sampling(job, data.train, inputs.teachers, seed, log, resumed=resumed)
    batches = sampling.batches(data.train, job.recipe.batch_size, seed, augment, ranks.share)
    teachers = caches.wrap(handles, inputs.folders, data, batches.augment)
    modules = method.modules()
    stages = method.arrange(
        build_stages(task, job, plan, batches, state, teachers, seed, ranks, modules, sampling.pool)
    )
    state.aux_modules.update(method.untrained_modules())
    state.aux_modules.update(sampling.modules(device))
    wrap_learners(state, ranks)
    for model in (*inputs.teachers.values(), *averages(state)):
        ranks.shard(model)
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
    trained_teachers = {name: learners.pop(name) for name in [*learners] if name == job.trained_teacher}
    live, stored = live | trained_teachers, stored | trained_teachers
    computed = {name: outputs for name, outputs in checked.outputs.items() if name not in trained_teachers}

    held_out = task.evaluator(job, HeldOut(data.eval, data.bytes, data.model.class_names), live, stored, computed)
    evaluator = Evaluator(job, task.main_metric, held_out, evaluated)
    save = ranks.collectively(lambda: checkpoint.save(state, job, plan, folder / CHECKPOINTS, ranks))
    counter = open_flop_counter(job, plan, data, teachers, state, method.flops, ranks.size)
    log(PhaseBegan(phase="training"))
    monitor = TrainingMonitor(job, plan, folder, log, stop, evaluator.evaluate, state, caches, save, counter)
    done = train_stages(stages, plan, state, monitor if ranks.first else NullMonitor(), step, method.begin)
    caches.sum_counts(ranks.sum)
    if not (done and ranks.first):
        if done:
            ranks.serve()
        return Stopped(step=state.step)

    monitor.save(state)  # after this point, nothing is trained again
    fit_head(student.config, evaluated, data.train)
    fit_thresholds(student.config, evaluated, data.train)
    log(PhaseBegan(phase="evaluating"))
    monitor.evaluate(state)
    if stop():
        ranks.dismiss()
        return Stopped(step=state.step)

    try:
        latency = partial(onnx_latency, samples=data.eval.between(0, 1).inputs[student.input_key], folder=folder)
        outcome = method.conclude(stages[-1], state, latency)
    except Interrupted:
        ranks.dismiss()
        return Stopped(step=state.step)

    log(PhaseBegan(phase="exporting"))
    # they were those of another student than the one that is exported, or not of samples alone
    operations = {"flops": counter.total(state)} if outcome.student is not None or counter.counts_steps else {}
    of_losses = {"losses": figures} if (figures := stages[-1].objective.figures()) else {}
    tokenizers = other_tokens(job, data)
    taught = {name: get() for name, get in stored.items()}
    trained = TrainedJob(
        task=task,
        job=job,
        plan=plan,
        state=replace(state, student=outcome.student or evaluated(), ema=None),
        teachers={name: (model, inputs.folders.get(name)) for name, model in taught.items()},
        untrained_teachers={
            name: stored_teacher(inputs, name)() for name in trained_teachers if name in inputs.folders
        },
        learners={name: get() for name, get in learners.items()},
        samples=data.eval,
        train=data.train,
        further=data.further,
        evaluator=held_out.beside(taught),
        teacher_cache=caches.figures(),
        teacher_fidelity=fidelity,
        arithmetic=counter.figures(state)
        | method.figures(state)
        | dict(outcome.figures)
        | operations
        | of_losses
        | sampling.figures(seed),
        write_further=outcome.write,
        tokenizer=data.readers.student if data.readers else None,
        tokenizers=tokenizers,
        alignment={name: data.alignment[reader.input_key] for name, reader in tokenizers.items()},
        sources=provenance(assignment, folder),
        embedding=checked.embedding,
        split=data.split,
        warnings=log.figures(),
    )
    ranks.dismiss()
    artifacts = write_bundle(trained, folder, device, lambda text: log(Log(level="warning", message=text)))
    return Finished(artifacts=artifacts, step=state.step)


def _seed_of(job: JobSpec) -> int:
    if job.seed is None:
        raise SystemFault("invalid_assignment", "the job has no seed")
    return job.seed


def _texts_place(job: JobSpec, shared: CachePlace | None, folder: Path) -> CachePlace:
    """Place of the texts: in the teacher cache of all jobs, or in the folder of this job only."""
    if shared is None or isinstance(job.teacher_cache, NoCache):
        return CachePlace(folder=str(folder / TEXTS))
    return shared


def _same(model: Model) -> Model:
    return model


def _evaluated(state: TrainState, name: str) -> Model:
    return state.learners[name].evaluated
