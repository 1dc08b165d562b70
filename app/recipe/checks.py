"""Rules that span several fields of a job, or a job and the facts about its inputs.

One pure function, so that the HTTP door (which knows file headers) and the trainer (which has read everything) hold a
job against the same rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from app.recipe.data import ImageData
from app.recipe.job import JobSpec
from app.recipe.losses import KdRel, Loss
from app.recipe.model import MAX_CHANNELS, MAX_SIDE, ImageInput, Input, ModelConfig, TableInput
from app.recipe.optimizers import MultiStep
from app.recipe.students import Mlp, Student, Vit


class Problem(NamedTuple):
    """One thing wrong with a job: the path of the field, what is wrong, and what would be accepted."""

    param: str
    message: str
    accepted: str | None = None


@dataclass(frozen=True)
class ArrayFacts:
    """Header of one array of a NumPy archive; `dtype` in NumPy's notation without byte order ("u1", "f4", "i8")."""

    shape: tuple[int, ...]
    dtype: str


Archive = dict[str, ArrayFacts]
"""Arrays of one NumPy archive by name."""


@dataclass(frozen=True)
class InputFacts:
    """What is known of a job's inputs; none means: not known yet, so not checked."""

    train: Archive | None = None
    eval: Archive | None = None
    teachers: Mapping[str, ModelConfig] = field(default_factory=dict)
    """Descriptions of teachers by their reference."""


@dataclass(frozen=True)
class ImageFacts:
    """What the two arrays of an archive amount to."""

    count: int
    input: ImageInput


@dataclass
class _Found:
    problems: list[Problem] = field(default_factory=list)

    def add(self, param: str, message: str, accepted: str | None = None) -> None:
        self.problems.append(Problem(param, message, accepted))


def image_facts(data: ImageData, archive: Archive, param: str = "data.train") -> ImageFacts | list[Problem]:
    """Read shape and count of the samples from an archive's headers, or say what is wrong with them."""
    keys = (("data.input_key", data.input_key), ("data.label_key", data.label_key))
    there = "one of " + ", ".join(sorted(archive))
    missing = [Problem(field, f"{param} has no array {key!r}", there) for field, key in keys if key not in archive]
    if missing:
        return missing
    images, labels = archive[data.input_key], archive[data.label_key]
    wrong = [*_image_problems(data, images, param), *_label_problems(data, images, labels, param)]
    if wrong:
        return wrong
    image = _image_input(data, images)
    return ImageFacts(images.shape[0], image) if isinstance(image, ImageInput) else [Problem(param, *image)]


def _image_problems(data: ImageData, images: ArrayFacts, param: str) -> Iterator[Problem]:
    name = f"array {data.input_key!r}"
    if len(images.shape) not in (3, 4):
        yield Problem(param, f"{name} has shape {images.shape}", "(N, H, W) or four axes in the order of data.layout")
    if images.dtype not in ("u1", "f2", "f4", "f8"):
        yield Problem(param, f"{name} has dtype {images.dtype}", "uint8 or floating point")
    if 0 in images.shape:
        yield Problem(param, f"{name} is empty: shape {images.shape}", "at least one image")


def _label_problems(data: ImageData, images: ArrayFacts, labels: ArrayFacts, param: str) -> Iterator[Problem]:
    if len(labels.shape) != 1 or labels.dtype[0] not in "iu":
        found = f"shape {labels.shape} and dtype {labels.dtype}"
        yield Problem(param, f"array {data.label_key!r} has {found}", "(N,) integers")
    elif images.shape and labels.shape[0] != images.shape[0]:
        yield Problem(param, f"{images.shape[0]} images but {labels.shape[0]} labels", "one label per image")


def _image_input(data: ImageData, images: ArrayFacts) -> ImageInput | tuple[str, str]:
    """The size of one image; or what is wrong with it, and what would be accepted."""
    _, *rest = images.shape
    if len(rest) == 2:
        channels, height, width = 1, *rest
    elif data.layout == "NHWC":
        height, width, channels = rest
    else:
        channels, height, width = rest
    if max(height, width) > MAX_SIDE or channels > MAX_CHANNELS:
        found = f"{channels} channels of {height} x {width} pixels, with layout {data.layout}"
        return found, f"at most {MAX_CHANNELS} channels of {MAX_SIDE} x {MAX_SIDE} pixels"
    return ImageInput(channels=channels, height=height, width=width)


def find_problems(job: JobSpec, facts: InputFacts = InputFacts()) -> list[Problem]:
    """Everything wrong with `job` that its single fields could not show, in the order of the document."""
    found = _Found()
    train = _images(job.data, facts.train, "data.train", found)
    evaluation = _images(job.data, facts.eval, "data.eval", found)
    if train and evaluation and train.input != evaluation.input:
        found.add("data.eval", f"samples are {_size(evaluation.input)}", f"{_size(train.input)}, as in data.train")
    if train and job.data.eval is None and train.count < 2:
        found.add("data.train", "one sample can't be split into training and evaluation", "two or more, or data.eval")
    found.problems.extend(_teaching_problems(job))
    for index, teacher in enumerate(job.all_teachers):
        if teacher.reference in facts.teachers:
            _check_teacher(job, facts.teachers[teacher.reference], train, job.teacher_param(index), found)
    found.problems.extend(architecture_problems(job.student, train.input if train else None, "student"))
    found.problems.extend(_loss_problems(job, facts.teachers))
    found.problems.extend(_recipe_problems(job))
    return found.problems


def _images(data: ImageData, archive: Archive | None, param: str, found: _Found) -> ImageFacts | None:
    if archive is None:
        return None
    result = image_facts(data, archive, param)
    if isinstance(result, ImageFacts):
        return result
    found.problems.extend(result)
    return None


def _teaching_problems(job: JobSpec) -> Iterator[Problem]:
    """Teachers without losses that learn from them, and losses without teachers."""
    if job.teacher is not None and job.teachers:
        yield Problem("teachers", "is given beside teacher", "one of the two")
    names = Counter(teacher.name for teacher in job.all_teachers)
    for name, count in names.items():
        if count > 1:
            yield Problem("teachers", f"{count} teachers are called {name!r}", "a name of its own for each")
    learning = [term for terms in job.objectives.values() for term in terms if term.needs_teacher]
    if learning and not names:
        kinds = ", ".join(sorted({term.kind for term in learning}))
        yield Problem("teacher", f"is missing, and {kinds} needs one", "the id of a model")
    if names and not learning:
        yield Problem(
            "teachers" if job.teachers else "teacher",
            "is given, but no loss learns from it",
            "a loss such as kd or nkd, or no teacher",
        )


def _check_teacher(job: JobSpec, teacher: ModelConfig, train: ImageFacts | None, param: str, found: _Found) -> None:
    if teacher.task != job.task:
        found.add(param, f"was made for {teacher.task}", f"a model for {job.task}")
    if job.data.classes not in (None, teacher.classes):
        found.add("data.classes", f"is {job.data.classes}, the teacher has {teacher.classes}", str(teacher.classes))
    if train and teacher.input != train.input:
        found.add(param, f"takes {_size(teacher.input)}", f"{_size(train.input)}, as in data.train")


def architecture_problems(network: Student, given: Input | None, path: str) -> Iterator[Problem]:
    """What keeps a network from being built for this input; `path` is where the document describes it."""
    if given is not None and not isinstance(given, ImageInput) and not isinstance(network, Mlp):
        yield Problem(f"{path}.architecture", f"{network.architecture} takes images", "mlp")
    if not isinstance(network, Vit):
        return
    if isinstance(given, ImageInput) and (given.height % network.patch_size or given.width % network.patch_size):
        sides = f"{given.height} x {given.width}"
        yield Problem(f"{path}.patch_size", f"{network.patch_size} does not divide {sides}", f"a divisor of {sides}")
    if network.width % network.heads:
        yield Problem(f"{path}.heads", f"{network.heads} does not divide the width {network.width}", "a divisor of it")


def _loss_problems(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    known = [teachers[teacher.reference].classes for teacher in job.all_teachers if teacher.reference in teachers]
    classes = job.data.classes or next(iter(known), None)
    for path, terms in job.objectives.items():
        for index, term in enumerate(terms):
            yield from _term_problems(job, term, f"{path}[{index}]")
            if isinstance(term, KdRel):
                yield from _hierarchy_problems(job, term, classes, f"{path}[{index}].parents")


def _term_problems(job: JobSpec, term: Loss, path: str) -> Iterator[Problem]:
    if job.task not in term.tasks:
        yield Problem(f"{path}.kind", f"{term.kind} is not for {job.task}", "a loss for this task")
    names = [teacher.name for teacher in job.all_teachers]
    for field_name, name in term.named_teachers().items():
        if not term.needs_teacher:
            yield Problem(f"{path}.{field_name}", f"{term.kind} learns from no teacher", "no name")
        elif name not in names:
            yield Problem(f"{path}.{field_name}", f"there is no teacher {name!r}", f"one of {', '.join(names)}")
    if term.couples_rows and job.recipe.accumulate > 1:
        found = f"is {job.recipe.accumulate}, but {term.kind} compares all samples of a batch with each other"
        yield Problem("recipe.accumulate", f"{found}, so that a batch can't be computed in parts", "1")


def _hierarchy_problems(job: JobSpec, term: KdRel, classes: int | None, param: str) -> Iterator[Problem]:
    given = len(term.parents)
    if classes is None and not job.all_teachers:
        yield Problem("data.classes", f"is missing, and {term.kind} needs it", f"{given}, as in {param}")
    if classes not in (None, given):
        yield Problem(param, f"has {given} numbers for {classes} classes", "one number per class")


def _recipe_problems(job: JobSpec) -> Iterator[Problem]:
    recipe = job.recipe
    if recipe.accumulate > recipe.batch_size:
        yield Problem(
            "recipe.accumulate", f"{recipe.accumulate} is more than the batch size", f"<= {recipe.batch_size}"
        )
    if isinstance(recipe.schedule, MultiStep) and recipe.schedule.milestones[-1] >= recipe.epochs:
        yield Problem(
            "recipe.schedule.milestones",
            f"{recipe.schedule.milestones[-1]} is not reached",
            f"epochs < {recipe.epochs}",
        )


def _size(given: Input) -> str:
    if isinstance(given, ImageInput):
        return f"{given.channels} x {given.height} x {given.width}"
    return f"{given.columns} columns" if isinstance(given, TableInput) else f"{given.length} tokens"
