"""Reads the inputs of a job: samples, teachers, and the initial student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from app.recipe.job import JobSpec
from worker.data.running_text import PackingDir
from worker.data.task_data import TaskData
from worker.data.tokens import TextTokenizer
from worker.distributed.ranks import SingleProcess
from worker.errors import UserError
from worker.limits import Subject, reading
from worker.machine import sample_memory
from worker.protocol import Log
from worker.students.codebook import start_codebook
from worker.students.convert import convert
from worker.students.hugging_face_folder import oddities
from worker.students.leftovers import describe_ignored
from worker.students.model import Model
from worker.students.shrink import inherit
from worker.students.start import start
from worker.tasks.base import Task
from worker.teachers import load_teacher, read_teacher_config
from worker.teachers.class_alignment import take_classes
from worker.training.dual_encoder import read_labels
from worker.training.state import fresh_student
from worker.training.warning_log import WarningLog

STUDENT = Subject("the student", "invalid_architecture", "student")
WHOLE_MACHINE, BUILDING_SECONDS = 1 << 50, 500
"""Bounds on building the student, in bytes and seconds: a large one is no error, but the machine is shared."""
PACKED = "packed"
"""Prefix of the name of a folder with packed texts."""


class JobInputs(NamedTuple):
    """Samples and teachers of a job."""

    data: TaskData
    teachers: dict[str, Model]
    """Teachers on the device, by name."""
    folders: dict[str, Path]
    """Folders of their files, by name."""


def load_inputs(
    task: Task, job: JobSpec, paths: dict[str, Path], seed: int, device: torch.device, packing_dir: PackingDir
) -> JobInputs:
    """Read the inputs at `paths`, by reference; training samples stay on the CPU if the device's memory is too
    small."""
    folders = {teacher.name: paths[teacher.reference] for teacher in job.all_teachers}
    params = {teacher.name: job.teacher_param(index) for index, teacher in enumerate(job.all_teachers)}
    described = {
        origin.reference: read_teacher_config(paths[origin.reference], f"{path}.{origin.source}").taken_for(job.task)
        for path, origin in job.origins.items()
    }
    data = task.load(job, paths, described, seed, packing_dir)
    models = {
        each.name: load_teacher(folders[each.name], params[each.name], described[each.reference]).to(device)
        for each in job.all_teachers
    }
    for teacher in job.all_teachers:
        models[teacher.name].input_key = data.input_key_of(teacher.reference) or models[teacher.name].input_key
        if teacher.name in data.places:
            take_classes(models[teacher.name], data.places[teacher.name], data.model.class_names)
        if job.recipe.channels_last:
            models[teacher.name].to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
    train = data.train.settle(device, sample_memory(device))
    prompts = data.prompts and data.prompts.to(device)
    kept_back = data.kept_back and data.kept_back.to(device)
    data = replace(data, train=train, eval=data.eval.to(device), kept_back=kept_back, prompts=prompts)
    return JobInputs(data, models, folders)


def build_student(
    job: JobSpec, inputs: JobInputs, paths: dict[str, Path], seed: int, device: torch.device, log: WarningLog
) -> Model:
    """The student before its first step: random, or initialised as the job specifies."""
    with reading(STUDENT, WHOLE_MACHINE, BUILDING_SECONDS):
        student = fresh_student(inputs.data.model, seed)
    student.input_key = inputs.data.input_key or student.input_key
    warn = partial(log.warn, "fresh_layer") if job.recipe.method.trains else _refuse_fresh
    derived = convert(inherit(student, job, inputs.teachers), job, inputs.teachers)
    started = start(derived, job, paths, warn)
    start_codebook(started, inputs.teachers, seed)
    if not job.recipe.method.trains:
        _require_stored_outputs(started, job, paths)
    read_labels(started, inputs.data)
    return started.to(device)


def _refuse_fresh(message: str) -> None:
    raise UserError("invalid_job", f"student can't be evaluated untrained: {message}", "student")


def _require_stored_outputs(student: Model, job: JobSpec, paths: dict[str, Path]) -> None:
    """Raise UserError (`invalid_job`) if a student that is not trained has other outputs than the stored model, so that
    its last layer is random."""
    assert job.start is not None  # by the contract
    stored = read_teacher_config(paths[job.start.reference], job.start_param).taken_for(job.task)
    same = stored.task_spec.answers_alike(student.config.task_spec) and stored.outputs == student.config.outputs
    if not (same and stored.has_head):
        here, there = (f"{one.outputs} outputs for {one.task}" for one in (student.config, stored))
        _refuse_fresh(f"the model has {there}, the data {here}; data.classes or data.class_order can name its classes")


def log_oddities(inputs: JobInputs, student: Model, log: WarningLog) -> None:
    """Log peculiarities of the data and of stored models that their owners may not be aware of."""
    for note in inputs.data.notes:
        log.warn("odd_data", note)
    for name, model in (*inputs.teachers.items(), ("the student", student)):
        if model.ignored:
            log(Log(message=f"{name}: {describe_ignored(model.ignored)}"))
    for name, model in inputs.teachers.items():
        if model.config.task_assumed and not model.config.task_spec.chooses:
            read = f"its logits are read as those of {model.config.task}: a sigmoid for each class"
            log.warn("odd_model", f"{name}: config.json has no problem_type; {read}")
    for name, path in inputs.folders.items():
        for note in oddities(path):
            log.warn("odd_model", f"{name}: {note}")


def packing_dir(folder: Path, log: WarningLog, ranks: SingleProcess) -> PackingDir:
    """Folder of packed texts; the processes of one machine map the files that its first one has packed."""
    packed = folder / f"{PACKED}-{ranks.machine}"
    return PackingDir(packed, lambda message: log(Log(message=message)), ranks.first_here, ranks.barrier)


def stored_teacher(inputs: JobInputs, name: str) -> Callable[[], Model]:
    """A function that loads a teacher in the precision of its files, to the device of its lowered model."""

    def load() -> Model:
        model, places = inputs.teachers[name], inputs.data.places.get(name)
        stored = load_teacher(inputs.folders[name], "teacher").to(next(model.parameters()).device).eval()
        if places is not None:
            take_classes(stored, places, model.config.class_names)
        stored.input_key = model.input_key
        return stored

    return load


def other_tokens(job: JobSpec, data: TaskData) -> dict[str, TextTokenizer]:
    """Tokenizers of teachers that differ from the student's, for a language model, by the teachers' names."""
    if data.readers is None:
        return {}
    by_name = {teacher.name: data.readers.by_teacher[teacher.reference] for teacher in job.all_teachers}
    return {name: reader for name, reader in by_name.items() if reader.input_key in data.alignment}
