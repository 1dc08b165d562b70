"""From labels as they were stored to targets: numbers of classes with their names, or numbers as they are.

Every file has classes of its own, in an order of its own; they are found among those of the job by their names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from app.recipe.data.class_rules import WAY_OUT, model_classes, told_classes
from app.recipe.data.classes import ClassList, ClassMatch, ClassMismatch, match_classes
from app.recipe.data.sources import Data, ImageData
from app.recipe.job import JobSpec
from app.recipe.students.model import MAX_CLASSES, ModelConfig
from worker.data.archive import NDArray
from worker.data.formats.columns import Samples
from worker.data.formats.faults import invalid, listed, shown
from worker.errors import UserError

Labels = NDArray | list[str]
DATA = "data.train"
MAX_NAMES_BYTES = 2 * 2**20
"""Of all classes, as JSON; a model's description has them twice, and may have four times that."""


@dataclass(frozen=True)
class Classes:
    """The classes of a job: how many, their names where they have any, and where its teachers have them."""

    count: int
    names: list[str] | None
    places: Mapping[str, list[int]] = field(default_factory=dict)
    """By the name of a teacher: for each class its number among the teacher's outputs."""
    notes: Sequence[str] = ()
    """Names that were taken for the same although they are written differently."""

    @property
    def listed(self) -> ClassList:
        """The same, to be matched with others."""
        return ClassList(DATA, self.count, self.names)


def find_classes(job: JobSpec, models: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Classes:
    """The classes that the training file, the contract and the teachers speak of; `models` are their descriptions, by
    reference. Raises UserError (`invalid_data`, or `invalid_teacher` where a teacher has other classes)."""
    data = job.data
    teachers = {
        teacher.name: model_classes(job, teacher, job.teacher_path(index), models[teacher.reference])
        for index, teacher in enumerate(job.all_teachers)
    }
    names = _names(job, models, samples[DATA], list(teachers.values()))
    count = data.classes or (len(names) if names else _numbered_classes(list(teachers.values()), samples))
    if not 2 <= count <= MAX_CLASSES:
        told = f"the classes are {listed(names)}" if names else f"the largest label is {count - 1}"
        accepted = f"labels from 0, at least two classes, at most {MAX_CLASSES}"
        raise invalid(f"{told}; accepted: {accepted}", DATA)
    if names is not None and len(names) != count:
        raise invalid(f"{len(names)} classes have names, but there are {count}", "data.classes")
    if names is not None and len(json.dumps(names)) > MAX_NAMES_BYTES:
        long = f"the names of the {count} classes take more than {MAX_NAMES_BYTES} bytes together"
        raise invalid(f"{long}; accepted: shorter names", "data.train")
    found = {
        name: _match(ClassList(DATA, count, names), theirs, job.teacher_path(index))
        for index, (name, theirs) in enumerate(teachers.items())
    }
    notes = [match.note for match in found.values() if match.note]
    return Classes(count, names, {name: match.places for name, match in found.items()}, notes)


def _match(ours: ClassList, theirs: ClassList, path: str) -> ClassMatch:
    try:
        return match_classes(ours, theirs)
    except ClassMismatch as error:
        message = f"{error}; accepted: {WAY_OUT.format(path=path)}"
        raise UserError("invalid_teacher", message, theirs.whose) from None


def _names(
    job: JobSpec, models: Mapping[str, ModelConfig], train: Samples, teachers: list[ClassList]
) -> list[str] | None:
    """As the contract tells them, else as the file lists them; what is found in labels alone has the teacher's order,
    if every teacher knows all of its classes."""
    if (told := told_classes(job, models)) is not None:
        return None if told.names is None else list(told.names)
    if not isinstance(train.labels, list):
        return train.class_names
    names = sorted(set(train.labels))
    first = teachers[0] if teachers else None
    wider = first is not None and first.names is not None and job.data.classes in (None, first.count)
    if first is not None and wider and _all_know(first, teachers) and _knows(ClassList(DATA, len(names), names), first):
        return list(first.names or ())
    return names


def _all_know(first: ClassList, teachers: list[ClassList]) -> bool:
    return all(_knows(first, other) for other in teachers[1:])


def _knows(wanted: ClassList, there: ClassList) -> bool:
    try:
        match_classes(wanted, there)
    except ClassMismatch:
        return False
    return True


def _numbered_classes(teachers: list[ClassList], samples: Mapping[str, Samples]) -> int:
    """How many classes there are where the data tells of none but by its labels."""
    largest = max(int(one.labels.max()) for one in samples.values() if not isinstance(one.labels, list)) + 1
    return teachers[0].count if teachers else largest


def class_targets(
    samples: Samples, classes: Classes, data: Data, param: str, place: Callable[[int], str] = "index {}".format
) -> tuple[Tensor, list[str]]:
    """Classes (N,) int64, and names that were taken for the same although they are written differently.

    Raises UserError naming the label that is none of them, and the `place` of its index.
    """
    if isinstance(samples.labels, list):
        return _of_texts(samples.labels, classes, param, place)
    own = _own_classes(samples, classes, data, param)
    wrong = (samples.labels < 0) | (samples.labels >= own.count)
    if wrong.any():
        index = int(wrong.argmax())
        where = f"of array {data.label_key!r}" if isinstance(data, ImageData) else f"of {param}"
        found = f"label {samples.labels[index]} at {place(index)} {where}"
        raise invalid(f"{found} is outside 0..{own.count - 1}", param)
    numbers = samples.labels.astype(np.int64)
    if own.names is None or own.names == classes.names:
        return torch.from_numpy(numbers), []
    used = np.unique(numbers)
    match = _find([own.names[number] for number in used], classes, param)
    table = np.zeros(own.count, np.int64)
    table[used] = match.places
    return torch.from_numpy(table[numbers]), [match.note] if match.note else []


def _own_classes(samples: Samples, classes: Classes, data: Data, param: str) -> ClassList:
    """What the numbers of a file mean: the classes that it lists, or those of the job in their order."""
    if samples.class_names is not None:
        return ClassList(param, len(samples.class_names), samples.class_names)
    if data.class_order is not None or classes.names is None:
        return ClassList(param, classes.count)
    assert not isinstance(samples.labels, list)  # numbers are at hand
    names = [str(number) for number in range(int(samples.labels.max()) + 1)]
    if not all(name.isdecimal() for name in classes.names):
        accepted = "names in both files, or data.class_order: the names in the order of the numbers"
        known = classes.listed.shown
        raise invalid(f"{param} has numbers for labels, and data.train names: {known}; accepted: {accepted}", param)
    return ClassList(param, len(names), names)


def _find(names: list[str], classes: Classes, param: str) -> ClassMatch:
    try:
        return match_classes(ClassList(param, len(names), names), classes.listed)
    except ClassMismatch as error:
        accepted = "the same names in data.train and data.eval, or data.class_order with all of them"
        raise invalid(f"{error}; accepted: {accepted}", param) from None


def _of_texts(labels: list[str], classes: Classes, param: str, place: Callable[[int], str]) -> tuple[Tensor, list[str]]:
    names = sorted(set(labels))
    try:
        match = match_classes(ClassList(param, len(names), names), classes.listed)
    except ClassMismatch as error:
        wrong = next((index for index, label in enumerate(labels) if not is_class(label, classes)), None)
        where = f"label {shown(labels[wrong])} at {place(wrong)} of {param} is no class; " if wrong is not None else ""
        raise invalid(f"{where}{error}", param) from None
    number = dict(zip(names, match.places, strict=True))
    targets = torch.from_numpy(np.array([number[label] for label in labels], np.int64))
    return targets, [match.note] if match.note else []


def is_class(label: str, classes: Classes) -> bool:
    """Whether a name is that of one of the classes."""
    return _knows(ClassList("", 1, [label]), classes.listed)
