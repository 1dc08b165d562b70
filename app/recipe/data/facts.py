"""What is known of a job's files, from the little that their headers tell, and whether it makes sense for the job."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from app.recipe.data.augmentation import Crop, Flip, RandAugment, SelfMix
from app.recipe.data.sources import CsvData, Data, ImageData, ImageFolderData, JsonlData, Table
from app.recipe.data.tokenizers import WordPiece
from app.recipe.students.model import MAX_CHANNELS, MAX_COLUMNS, MAX_SIDE, ImageInput, Input, TableInput, TextInput
from app.recipe.tasks.task import CAUSAL_LM, CLASSIFICATION, EMBEDDING, NUMBERS, TEXT_TASKS, Task


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
class FirstLine:
    """The first line of a file of text."""

    text: str


@dataclass(frozen=True)
class SampleFacts:
    """What a file's samples amount to."""

    count: int
    input: Input
    bytes: int
    """One sample takes in memory, its label not counted."""
    pixels: bool = False
    """True for images of 8 bits a channel."""
    targets: int | None = None
    """Numbers to answer with; none: classes, or tokens."""


Known = Archive | FirstLine | SampleFacts
"""What is known of one file: as much as its header tells, or everything."""

_ACCEPTED: dict[Task, str] = {
    "image-classification": "npz, parquet, image-folder or hf-dataset",
    "text-classification": "csv, jsonl, parquet or hf-dataset",
    "regression": "npz, csv, jsonl, parquet or hf-dataset",
    "keypoints": "npz, parquet or hf-dataset",
    "embedding": "csv, jsonl, parquet or hf-dataset",
    "causal-lm": "csv, jsonl, parquet or hf-dataset",
}
_VIEWS: dict[type, str] = {ImageInput: "images", TableInput: "table", TextInput: "texts"}


def sample_facts(data: Data, task: Task, known: Known | None, param: str = "data.train") -> SampleFacts | list[Problem]:
    """What a file's samples amount to, or what is wrong with them; an empty list: its header does not tell."""
    if isinstance(known, SampleFacts):
        return known
    if isinstance(known, FirstLine) and isinstance(data, Table):
        return list(_missing_columns(data.at(param), known, param))
    if isinstance(known, dict) and isinstance(data, ImageData):
        return _of_archive(data, task, known, param)
    return []


def data_problems(data: Data, task: Task, train: SampleFacts | None) -> Iterator[Problem]:
    """What in `data` does not go together with the task, or with its samples as far as they are known."""
    yield from _format_problems(data, task)
    if data.classes is not None and task not in CLASSIFICATION:
        yield Problem("data.classes", f"is given, but {task} answers with no classes", "no classes")
    if data.targets_transform is not None and task not in NUMBERS:
        yield Problem("data.targets_transform", f"is given, but {task} does not answer with numbers to learn", "none")
    for index, step in enumerate(data.augment):
        path = f"data.augment[{index}]"
        if task not in step.tasks:
            yield Problem(f"{path}.kind", f"{step.kind} is not for {task}", "an augmentation for this task")
        elif train is not None and _VIEWS[type(train.input)] not in step.views:
            yield Problem(f"{path}.kind", f"{step.kind} is for {' and '.join(step.views)}", _VIEWS[type(train.input)])
        elif isinstance(step, Flip):
            yield from _flip_problems(step, task, train, path)
        elif isinstance(step, Crop) and train is not None:
            yield from _crop_problems(step, train.input, path)
        elif isinstance(step, SelfMix) and data.augment[0].mixes:
            yield Problem(
                f"{path}.kind", "self-mix joins two views of an image, and nothing makes them differ", "crop first"
            )
        elif isinstance(step, RandAugment) and train is not None:
            yield from _colour_problems(train, path)


def _format_problems(data: Data, task: Task) -> Iterator[Problem]:
    images = task in ("image-classification", "keypoints")
    unfit = {
        ImageData: task in TEXT_TASKS,
        CsvData: images,
        JsonlData: images,
        ImageFolderData: task != "image-classification",
    }
    if unfit.get(type(data), False):
        name = getattr(data, "format", "")
        yield Problem("data.format", f"{name} holds nothing for {task}", _ACCEPTED[task])
    elif isinstance(data, Table):
        yield from _columns_problems(data, task)


def _columns_problems(data: Table, task: Task) -> Iterator[Problem]:
    if task == EMBEDDING:
        yield from _encoder_problems(data)
        return
    for field in ("eval_input_columns", "eval_label_columns"):
        if getattr(data, field) is not None:
            yield Problem(f"data.{field}", f"is for embedding, the task is {task}", "none: as in data.train")
    if task == CAUSAL_LM:
        yield from _running_text_problems(data)
        return
    if not data.label_columns:
        yield Problem("data.label_columns", f"is missing, and {task} needs it", "the columns to answer with")
    if task in CLASSIFICATION and len(data.label_columns) > 1:
        yield Problem("data.label_columns", f"names {len(data.label_columns)} columns for one class", "one column")
    if task == "text-classification" and len(data.input_columns) > 2:
        yield Problem("data.input_columns", f"names {len(data.input_columns)} columns of texts", "one or two columns")


def _encoder_problems(data: Table) -> Iterator[Problem]:
    """Texts or pairs to learn from, pairs to evaluate on, and scores of pairs alone."""
    own = data.eval_input_columns is not None or data.eval_label_columns is not None
    if own and data.holds_out:
        yield Problem("data.eval", "is missing, and columns of it are named", "a file, or no columns of its own")
        return
    yield from _texts_problems(data, "data.train")
    if own:
        yield from _texts_problems(data, "data.eval")
    elif len(data.input_columns) == 1 and data.holds_out:
        yield Problem("data.eval", "is missing, and single texts can't be evaluated", "a file with pairs of texts")
    if not data.holds_out and len(data.at("data.eval").input_columns) == 1:
        yield Problem("data.eval_input_columns", "must name two columns: evaluation compares texts", "two columns")


def _texts_problems(data: Table, param: str) -> Iterator[Problem]:
    texts, scores = data.at(param).input_columns, data.at(param).label_columns
    if len(texts) > 2:
        yield Problem(data.field("input_columns", param), f"names {len(texts)} columns", "one, or two of a pair")
    if len(scores) > (len(texts) > 1):
        found = f"names {len(scores)} columns of scores for {len(texts)} of texts"
        yield Problem(data.field("label_columns", param), found, "one column, of pairs of texts, or none")


def _running_text_problems(data: Table) -> Iterator[Problem]:
    if len(data.input_columns) > 1:
        yield Problem("data.input_columns", f"names {len(data.input_columns)} columns", "one, of texts or of chats")
    if data.label_columns:
        yield Problem("data.label_columns", "is given, and a text is its own answer", "no columns")
    if isinstance(data.tokenizer, WordPiece):
        found = "is wordpiece, which loses the spaces and lines of a text, so that none could be written"
        yield Problem("data.tokenizer.kind", found, "bpe, or teacher")


def _flip_problems(step: Flip, task: Task, train: SampleFacts | None, path: str) -> Iterator[Problem]:
    if (step.pairs is None) == (task == "keypoints"):
        found = (
            "is missing: a mirror makes the left eye a right one" if step.pairs is None else "is for keypoints alone"
        )
        yield Problem(
            f"{path}.pairs", found, "pairs of points that change places" if step.pairs is None else "no pairs"
        )
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


def _colour_problems(train: SampleFacts, path: str) -> Iterator[Problem]:
    channels = train.input.channels if isinstance(train.input, ImageInput) else 0
    if not train.pixels or channels not in (1, 3):
        accepted = "images of uint8 with one channel or three"
        yield Problem(f"{path}.kind", "rand-augment does not know how to change these images", accepted)


def _missing_columns(data: Table, line: FirstLine, param: str) -> Iterator[Problem]:
    if isinstance(data, CsvData) and data.quoted and line.text.count('"') % 2:
        return  # a name has a line break in it: the header is longer than its first line
    there = _columns(data, line.text)
    if there is None:
        yield Problem(param, "its first line is not a JSON object", "one JSON object a line")
        return
    named = [(data.field("input_columns", param), name) for name in data.input_columns]
    for field, name in named + [(data.field("label_columns", param), name) for name in data.label_columns]:
        if there.count(name) != 1:
            found = "two columns" if name in there else "no column"
            yield Problem(field, f"{param} has {found} {name!r}", "one of " + ", ".join(sorted(set(there))[:20]))


def _columns(data: Table, line: str) -> Sequence[str] | None:
    if isinstance(data, CsvData):
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if data.quoted else csv.QUOTE_NONE
        return next(csv.reader([line], delimiter=data.delimiter, quoting=quoting), [])
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return list(row) if isinstance(row, dict) else None


def _of_archive(data: ImageData, task: Task, archive: Archive, param: str) -> SampleFacts | list[Problem]:
    keys = (("data.input_key", data.input_key), ("data.label_key", data.label_key))
    there = "one of " + ", ".join(sorted(archive))
    missing = [Problem(field, f"{param} has no array {key!r}", there) for field, key in keys if key not in archive]
    if missing:
        return missing
    inputs, labels = archive[data.input_key], archive[data.label_key]
    wrong = [*_input_problems(data, task, inputs, param), *_label_problems(data, task, inputs, labels, param)]
    if wrong:
        return wrong
    given = _input(data, inputs)
    if not isinstance(given, ImageInput | TableInput):
        return [Problem(param, *given)]
    count, *rest = inputs.shape
    size = 1 if inputs.dtype == "u1" and len(inputs.shape) > 2 else 4
    return SampleFacts(count, given, size * math.prod(rest), inputs.dtype == "u1", _targets(task, labels.shape))


def _targets(task: Task, shape: Sequence[int]) -> int | None:
    return None if task in CLASSIFICATION else math.prod(shape[1:])


def _input_problems(data: ImageData, task: Task, inputs: ArrayFacts, param: str) -> Iterator[Problem]:
    name = f"array {data.input_key!r}"
    axes: tuple[int, ...] = (3, 4)
    accepted = "(N, H, W) or four axes in the order of data.layout"
    if task == "regression":
        axes, accepted = (2, 3, 4), f"(N, D), {accepted}"
    if len(inputs.shape) not in axes:
        yield Problem(param, f"{name} has shape {inputs.shape}", accepted)
    if inputs.dtype not in ("u1", "f2", "f4", "f8"):
        yield Problem(param, f"{name} has dtype {inputs.dtype}", "uint8 or floating point")
    if 0 in inputs.shape:
        yield Problem(param, f"{name} is empty: shape {inputs.shape}", "at least one sample")


def _label_problems(
    data: ImageData, task: Task, inputs: ArrayFacts, labels: ArrayFacts, param: str
) -> Iterator[Problem]:
    accepted = {"regression": "(N,) or (N, T) numbers", "keypoints": "(N, K, 2) floating point"}.get(task)
    if not _fits(task, labels):
        found = f"shape {labels.shape} and dtype {labels.dtype}"
        yield Problem(param, f"array {data.label_key!r} has {found}", accepted or "(N,) integers")
    elif inputs.shape and labels.shape[0] != inputs.shape[0]:
        yield Problem(param, f"{inputs.shape[0]} samples but {labels.shape[0]} labels", "one label per sample")


def _fits(task: Task, labels: ArrayFacts) -> bool:
    axes, kind = len(labels.shape), labels.dtype[0]
    if task == "regression":
        return axes in (1, 2) and kind in "iuf" and 0 not in labels.shape[1:]
    if task == "keypoints":
        return axes == 3 and kind == "f" and labels.shape[2] == 2 and labels.shape[1] > 0
    return axes == 1 and kind in "iu"


def _input(data: ImageData, inputs: ArrayFacts) -> ImageInput | TableInput | tuple[str, str]:
    """The size of one sample; or what is wrong with it, and what would be accepted."""
    if len(inputs.shape) == 2:
        columns = inputs.shape[1]
        return (
            TableInput(columns=columns) if columns <= MAX_COLUMNS else (f"{columns} columns", f"{MAX_COLUMNS} at most")
        )
    if len(inputs.shape) == 3:
        channels, height, width = 1, inputs.shape[1], inputs.shape[2]
    elif data.layout == "NHWC":
        _, height, width, channels = inputs.shape
    else:
        _, channels, height, width = inputs.shape
    if max(height, width) > MAX_SIDE or channels > MAX_CHANNELS:
        found = f"{channels} channels of {height} x {width} pixels, with layout {data.layout}"
        return found, f"at most {MAX_CHANNELS} channels of {MAX_SIDE} x {MAX_SIDE} pixels"
    return ImageInput(channels=channels, height=height, width=width)
