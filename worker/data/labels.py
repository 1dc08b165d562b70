"""From stored labels to targets: numbers of classes with their names.

Every file may have different classes in a different order; they are matched with the job's classes by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from app.recipe.data.class_rules import WAY_OUT, declared_classes, model_classes
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
"""Most bytes of all names as JSON; a model's description has them twice, and may have four times as many bytes."""


@dataclass(frozen=True)
class Classes:
    """The classes of a job: their count, their names if any, and their numbers in the teachers' outputs."""

    count: int
    names: list[str] | None
    places: Mapping[str, list[int]] = field(default_factory=dict)
    """By the name of a teacher: for each class its number among the teacher's outputs."""
    notes: Sequence[str] = ()
    """Notes on names that were matched although they are written differently."""

    @property
    def listed(self) -> ClassList:
        """The list of classes, for matching with others."""
        return ClassList(DATA, self.count, self.names)


def find_classes(job: JobSpec, models: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Classes:
    """The classes of the job, from the training file, the contract and the teachers; `models` are the teachers'
    descriptions, by reference. Raises UserError (`invalid_data`, or `invalid_teacher` if a teacher has other
    classes)."""
    data = job.data
    teachers = {
        teacher.name: model_classes(job, teacher, job.teacher_path(index), models[teacher.reference])
        for index, teacher in enumerate(job.all_teachers)
    }
    names = _names(job, models, samples[DATA], list(teachers.values()))
    count = data.classes or (len(names) if names else _numbered_classes(list(teachers.values()), samples))
    if not 2 <= count <= MAX_CLASSES:
        found = f"the classes are {listed(names)}" if names else f"the largest label is {count - 1}"
        accepted = f"labels from 0, at least two classes, at most {MAX_CLASSES}"
        raise invalid(f"{found}; accepted: {accepted}", DATA)
    if names is not None and len(names) != count:
        raise invalid(f"{len(names)} classes have names, but there are {count}", "data.classes")
    if names is not None and len(json.dumps(names)) > MAX_NAMES_BYTES:
        long = f"the names of the {count} classes take more than {MAX_NAMES_BYTES} bytes together"
        raise invalid(f"{long}; accepted: shorter names", "data.train")
    matches = {
        name: _match(ClassList(DATA, count, names), teacher, job.teacher_path(index))
        for index, (name, teacher) in enumerate(teachers.items())
    }
    notes = [match.note for match in matches.values() if match.note]
    return Classes(count, names, {name: match.places for name, match in matches.items()}, notes)


def _match(classes: ClassList, teacher: ClassList, path: str) -> ClassMatch:
    try:
        return match_classes(classes, teacher)
    except ClassMismatch as error:
        message = f"{error}; accepted: {WAY_OUT.format(path=path)}"
        raise UserError("invalid_teacher", message, teacher.whose) from None


def _names(
    job: JobSpec, models: Mapping[str, ModelConfig], train: Samples, teachers: list[ClassList]
) -> list[str] | None:
    """The names from the contract, else from the file's list; names found in the labels alone have the first teacher's
    order, if every teacher has all of its classes."""
    if (declared := declared_classes(job, models)) is not None:
        return None if declared.names is None else list(declared.names)
    if not isinstance(train.labels, list):
        return train.class_names
    names = sorted(set(train.labels))
    first = teachers[0] if teachers else None
    wider = first is not None and first.names is not None and job.data.classes in (None, first.count)
    found = ClassList(DATA, len(names), names)
    if first is not None and wider and _all_have(first, teachers) and _has_all(found, first):
        return list(first.names or ())
    return names


def _all_have(first: ClassList, teachers: list[ClassList]) -> bool:
    return all(_has_all(first, other) for other in teachers[1:])


def _has_all(wanted: ClassList, there: ClassList) -> bool:
    try:
        match_classes(wanted, there)
    except ClassMismatch:
        return False
    return True


def _numbered_classes(teachers: list[ClassList], samples: Mapping[str, Samples]) -> int:
    """Number of classes if the data has them in its labels alone."""
    largest = max(int(one.labels.max()) for one in samples.values() if not isinstance(one.labels, list)) + 1
    return teachers[0].count if teachers else largest


def class_targets(
    samples: Samples, classes: Classes, data: Data, param: str, place: Callable[[int], str] = "index {}".format
) -> tuple[Tensor, list[str]]:
    """Classes (N,) int64, and notes on names that were matched although they are written differently.

    Raises UserError naming a label that is none of the classes, and the `place` of its index.
    """
    if isinstance(samples.labels, list):
        return _of_texts(samples.labels, classes, param, place)
    listed_classes = _own_classes(samples, classes, data, param)
    wrong = (samples.labels < 0) | (samples.labels >= listed_classes.count)
    if wrong.any():
        index = int(wrong.argmax())
        where = f"of array {data.label_key!r}" if isinstance(data, ImageData) else f"of {param}"
        found = f"label {samples.labels[index]} at {place(index)} {where}"
        raise invalid(f"{found} is outside 0..{listed_classes.count - 1}", param)
    numbers = samples.labels.astype(np.int64)
    if listed_classes.names is None or listed_classes.names == classes.names:
        return torch.from_numpy(numbers), []
    used = np.unique(numbers)
    match = _find([listed_classes.names[number] for number in used], classes, param)
    table = np.zeros(listed_classes.count, np.int64)
    table[used] = match.places
    return torch.from_numpy(table[numbers]), [match.note] if match.note else []


def _own_classes(samples: Samples, classes: Classes, data: Data, param: str) -> ClassList:
    """The classes that the numbers of a file refer to: the file's list, or the job's classes in their order."""
    if samples.class_names is not None:
        return ClassList(param, len(samples.class_names), samples.class_names)
    if data.class_order is not None or classes.names is None:
        return ClassList(param, classes.count)
    assert not isinstance(samples.labels, list)  # they are numbers
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
    return _has_all(ClassList("", 1, [label]), classes.listed)
