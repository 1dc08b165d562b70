"""Rules of a job's data: format, columns and augmentations for the task and the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from app.recipe.data.augmentation import ColorJitter, Crop, Flip, Grayscale, RandAugment, SelfMix
from app.recipe.data.facts import SampleFacts
from app.recipe.data.sources import ColumnsField, Data, ImageData, Table
from app.recipe.problem import Problem
from app.recipe.students.inputs import ImageInput, Input
from app.recipe.tasks import tasks_with
from app.recipe.tasks.base import TaskSpec

PAIRS = "data.augment.pairs"
"""Option of the tasks whose labels mirroring changes."""
OPTIONS = ("unseen_classes", "normal_classes", "second_key", "eval_second_key", "mask_key", "mask_column")
"""Fields of formats that are for some tasks."""


def sample_problems(
    data: Data, train: SampleFacts | None, others: Mapping[str, SampleFacts | None]
) -> Iterator[Problem]:
    """Problems of training samples and those of other files, by the field that names each, that differ, or are too few
    to be divided."""
    for param, other in others.items():
        if train and other and train.input != other.input:
            yield Problem(param, f"samples are {other.input.size}", f"{train.input.size}, as in data.train")
    if train and data.holds_out and train.count < 2:
        found = "one sample can't be split into training and evaluation"
        yield Problem("data.train", found, "two or more, or data.eval")


def data_problems(data: Data, task: TaskSpec, train: SampleFacts | None) -> Iterator[Problem]:
    """Problems of settings in `data` that do not fit the task, or the known facts about the samples."""
    yield from _format_problems(data, task)
    if data.classes is not None and task.sized_by != "classes":
        yield Problem("data.classes", f"is given, but {task.name} answers with no classes", "no classes")
    if data.targets_transform is not None and task.answers != "numbers":
        found = f"is given, but {task.name} does not answer with numbers to learn"
        yield Problem("data.targets_transform", found, "none")
    yield from _unseen_problems(data, task)
    if isinstance(data, ImageData) and data.eval_second_key is not None and data.holds_out:
        yield Problem("data.eval_second_key", "is given, and there is no data.eval", "null, or data.eval")
    yield from _option_problems(data, task, OPTIONS)
    if task.compares_views and not data.augment:
        found = f"is empty, and {task.name} compares two augmented views of each image"
        yield Problem("data.augment", found, "augmentations such as resized-crop, flip, color-jitter and grayscale")
    yield from _augmentation_problems(data, task, train)


def _augmentation_problems(data: Data, task: TaskSpec, train: SampleFacts | None) -> Iterator[Problem]:
    for index, step in enumerate(data.augment):
        path = f"data.augment[{index}]"
        if not task.fits(type(step)):
            yield Problem(f"{path}.kind", task.refusal(type(step)), "an augmentation for this task")
        elif train is not None and train.input.kind not in step.reads:
            yield Problem(f"{path}.kind", f"{step.kind} is for {' and '.join(step.reads)}", train.input.kind)
        elif isinstance(step, Flip):
            yield from _flip_problems(step, task, train, path)
        elif isinstance(step, Crop) and train is not None:
            yield from _crop_problems(step, train.input, path)
        elif isinstance(step, SelfMix) and data.augment[0].mixes:
            yield Problem(
                f"{path}.kind", "self-mix joins two views of an image, and nothing makes them differ", "crop first"
            )
        elif isinstance(step, RandAugment | ColorJitter | Grayscale) and train is not None:
            yield from _colour_problems(step.kind, train, path)


def _unseen_problems(data: Data, task: TaskSpec) -> Iterator[Problem]:
    if data.unseen_classes is not None and not data.holds_out:
        found = "is given, and data.eval has the samples to evaluate on"
        yield Problem("data.unseen_classes", found, "null, or no data.eval")
    elif data.unseen_classes is not None and data.has_pairs():
        yield Problem("data.unseen_classes", "is given, and samples are pairs, without classes", "null")


def _option_problems(data: Data, task: TaskSpec, names: Sequence[str]) -> Iterator[Problem]:
    """Problems of those of the fields `names` that are given, and for other tasks."""
    for name in names:
        if getattr(data, name, None) is not None and (path := f"data.{name}") not in task.options:
            yield Problem(path, f"is for {tasks_with(path)}, the task is {task.name}", "null")


def _format_problems(data: Data, task: TaskSpec) -> Iterator[Problem]:
    if not isinstance(data, task.formats):
        *most, last = [each.format_name() for each in task.formats]
        accepted = f"{', '.join(most)} or {last}" if most else last
        yield Problem("data.format", f"{data.format_name()} holds nothing for {task.name}", accepted)
    elif isinstance(data, Table):
        yield from _columns_problems(data, task)


def _columns_problems(data: Table, task: TaskSpec) -> Iterator[Problem]:
    usual = {f"eval_{name}": "none: as in data.train" for name in get_args(ColumnsField)}
    for field, accepted in {
        **usual,
        "candidate_columns": "none",
        "corpus": "none",
        "label_texts": "none",
        "mining": "none",
        "label_separator": "none",
    }.items():
        if getattr(data, field, None) not in (None, []) and (path := f"data.{field}") not in task.options:
            yield Problem(path, f"is for {tasks_with(path)}, the task is {task.name}", accepted)
    yield from task.column_problems(data)


def _flip_problems(step: Flip, task: TaskSpec, train: SampleFacts | None, path: str) -> Iterator[Problem]:
    if (step.pairs is None) == (PAIRS in task.options):
        found, accepted = f"is for {tasks_with(PAIRS)} alone", "no pairs"
        if step.pairs is None:
            found, accepted = (
                "is missing: a mirror makes the left eye a right one",
                "pairs of points that change places",
            )
        yield Problem(f"{path}.pairs", found, accepted)
    named = [point for pair in step.pairs or () for point in pair]
    if len(set(named)) != len(named):
        yield Problem(f"{path}.pairs", "names a point twice", "each point in one pair at most")
    points = train.targets // 2 if train is not None and train.targets else None
    if points is not None and named and max(named) >= points:
        yield Problem(f"{path}.pairs", f"names point {max(named)} of {points}", f"0 to {points - 1}")


def _crop_problems(step: Crop, given: Input, path: str) -> Iterator[Problem]:
    if isinstance(given, ImageInput) and step.padding > min(given.height, given.width):
        sides = f"{given.height} x {given.width}"
        yield Problem(f"{path}.padding", f"{step.padding} is more than the image's {sides}", "at most its smaller side")


def _colour_problems(kind: str, train: SampleFacts, path: str) -> Iterator[Problem]:
    channels = train.input.channels if isinstance(train.input, ImageInput) else 0
    if not train.pixels or channels not in (1, 3):
        accepted = "images of uint8 with one channel or three"
        yield Problem(f"{path}.kind", f"{kind} does not support these images", accepted)
