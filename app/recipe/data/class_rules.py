"""Rules of the classes of a job, from the document and the descriptions of its models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from app.recipe.data.classes import ClassList, ClassMismatch, match_classes, shown_names
from app.recipe.data.sources import ImageData, Table
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.model import ModelConfig
from app.recipe.teachers.teacher import Origin

Models = Mapping[str, ModelConfig]
"""Descriptions of stored models, by their reference."""
WAY_OUT = "the same names, or data.class_order or {path}.class_order: the names in the order of the numbers"
"""Accepted alternative to lists that do not match."""


def model_classes(job: JobSpec, origin: Origin, path: str, model: ModelConfig) -> ClassList:
    """Classes of a stored model in the order of its outputs, with the names from the job, else from the model, else
    from `data.class_order`."""
    order = job.data.class_order
    names = origin.class_order or model.class_names
    if names is None and isinstance(order, list) and len(order) == model.classes:
        names = order
    return ClassList(f"{path}.{origin.source}", model.classes or 0, names)


def declared_classes(job: JobSpec, models: Models) -> ClassList | None:
    """The classes in `data.class_order`; none: it is not given, or it is that of an unknown teacher."""
    order = job.data.class_order
    if isinstance(order, list):
        return ClassList("data.class_order", len(order), order)
    first = next(iter(job.all_teachers), None)
    if order is None or first is None or first.reference not in models:
        return None
    taken = model_classes(job, first, job.teacher_path(0), models[first.reference])
    return replace(taken, whose="data.class_order")


def class_problems(job: JobSpec, models: Models) -> Iterator[Problem]:
    """Problems of the orders of classes, and of classes of teachers that differ from those of the data."""
    if job.task_spec.sized_by != "classes":
        given = {"data": job.data.class_order, **{path: origin.class_order for path, origin in job.origins.items()}}
        for path in (path for path, order in given.items() if order is not None):
            yield Problem(f"{path}.class_order", f"is given, but {job.task} answers with no classes", "null")
        yield from _target_problems(job, models)
        return
    if job.data.class_order == "teacher" and not job.all_teachers:
        yield Problem("data.class_order", "is teacher, and there is none", "a list of names, or null")
    if job.data.classes not in (None, job.data.declared_classes):
        found = f"has {job.data.declared_classes} names, data.classes is {job.data.classes}"
        yield Problem("data.class_order", found, "one name for each class")
    for path, origin in job.origins.items():
        if origin.reference in models:
            yield from _length_problems(origin, path, models[origin.reference])
    classes, declared = declared_classes(job, models) or _numbers(job), job.data.declared_classes
    for path, teacher in _teachers(job, models).items():
        if teacher.names is None and declared not in (None, teacher.count):
            field = "classes" if job.data.classes else "class_order"
            yield Problem(f"data.{field}", f"is {declared}, the teacher has {teacher.count}", str(teacher.count))
        elif classes is not None:
            yield from _mismatches(classes, teacher, path)


def _target_problems(job: JobSpec, models: Models) -> Iterator[Problem]:
    """Problems of models that were trained on the same target columns in another order, or on some of them."""
    if job.task_spec.answers != "numbers" or not isinstance(job.data, Table):
        return
    ours = job.data.label_columns
    for path, origin in job.origins.items():
        theirs = models[origin.reference].target_names if origin.reference in models else None
        if theirs is None or len(theirs) != len(ours) or theirs == ours or not set(theirs) & set(ours):
            continue  # if all names differ, columns are matched by their order
        found = f"answers with {shown_names(theirs)} in this order, data.label_columns has {shown_names(ours)}"
        yield Problem(f"{path}.{origin.source}", found, "the same columns in the same order")


def _teachers(job: JobSpec, models: Models) -> dict[str, ClassList]:
    """Classes of the known teachers with a name for each output or for none, by the path of the field."""
    known = [(job.teacher_path(index), each) for index, each in enumerate(job.all_teachers) if each.reference in models]
    found = {path: model_classes(job, each, path, models[each.reference]) for path, each in known}
    return {
        path: each for path, each in found.items() if each.count and len(each.names or range(each.count)) == each.count
    }


def _length_problems(origin: Origin, path: str, model: ModelConfig) -> Iterator[Problem]:
    if origin.class_order is not None and model.classes not in (None, len(origin.class_order)):
        found = f"has {len(origin.class_order)} names, the model has {model.classes} classes"
        yield Problem(f"{path}.class_order", found, f"{model.classes} names")


def _numbers(job: JobSpec) -> ClassList | None:
    """Classes of a format without class names."""
    return ClassList("data.train", job.data.classes or 0) if isinstance(job.data, ImageData) else None


def _mismatches(classes: ClassList, teacher: ClassList, path: str) -> Iterator[Problem]:
    try:
        match_classes(classes if classes.count else replace(classes, count=teacher.count), teacher)
    except ClassMismatch as error:
        yield Problem(teacher.whose, str(error), WAY_OUT.format(path=path))
