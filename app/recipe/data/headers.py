"""Facts about samples from the header of a file, and problems of the header."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from app.recipe.data.facts import Archive, ArrayFacts, FirstLine, Known, SampleFacts
from app.recipe.data.sources import ColumnsField, CsvData, Data, ImageData, Table
from app.recipe.problem import Problem
from app.recipe.students.inputs import MAX_CHANNELS, MAX_COLUMNS, MAX_SIDE, ImageInput, TableInput
from app.recipe.tasks.base import TaskSpec


def sample_facts(
    data: Data, task: TaskSpec, known: Known | None, param: str = "data.train"
) -> SampleFacts | list[Problem]:
    """Facts about a file's samples, or their problems; an empty list: its header has no facts."""
    if isinstance(known, SampleFacts):
        return known
    if isinstance(known, FirstLine) and isinstance(data, Table):
        return list(_missing_columns(data.at(param), known, param))
    if isinstance(known, dict) and isinstance(data, ImageData):
        return _of_archive(data, task, known, param)
    return []


def _missing_columns(data: Table, line: FirstLine, param: str) -> Iterator[Problem]:
    if isinstance(data, CsvData) and data.quoted and line.text.count('"') % 2:
        return  # a name has a line break in it: the header is longer than its first line
    there = _columns(data, line.text)
    if there is None:
        yield Problem(param, "its first line is not a JSON object", "one JSON object a line")
        return
    named = [(data.field(each, param), name) for each in get_args(ColumnsField) for name in getattr(data, each)]
    for field, name in named:
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


def _of_archive(data: ImageData, task: TaskSpec, archive: Archive, param: str) -> SampleFacts | list[Problem]:
    keys = [("data.input_key", data.input_key), ("data.label_key", data.label_key)]
    there = "one of " + ", ".join(sorted(archive))
    labelled = data.is_labelled(param) and (task.needs_labels or data.label_key in archive)
    keys = keys if labelled else keys[:1]
    missing = [Problem(field, f"{param} has no array {key!r}", there) for field, key in keys if key not in archive]
    if missing:
        return missing
    inputs, labels = archive[data.input_key], archive.get(data.label_key) if labelled else None
    second = data.at(param).second_key
    wrong = list(_input_problems(data, task, inputs, param))
    if second is not None:
        wrong += _second_problems(data, second, archive, param)
    if labels is not None:
        wrong += _label_problems(data, task, inputs, labels, param)
    if data.mask_key is not None and data.is_evaluated(param):
        wrong += _mask_problems(data, data.mask_key, archive, param)
    if wrong:
        return wrong
    given = _input(data, inputs)
    if not isinstance(given, ImageInput | TableInput):
        return [Problem(param, *given)]
    count, *rest = inputs.shape
    size = 1 if inputs.dtype == "u1" and len(inputs.shape) > 2 else 4
    size *= 1 if second is None else 2
    outputs = (None, None) if labels is None else (task.targets_in(labels), task.classes_in(labels))
    return SampleFacts(count, given, size * math.prod(rest), inputs.dtype == "u1", *outputs)


def _input_problems(data: ImageData, task: TaskSpec, inputs: ArrayFacts, param: str) -> Iterator[Problem]:
    name = f"array {data.input_key!r}"
    axes: tuple[int, ...] = (3, 4)
    accepted = "(N, H, W) or four axes in the order of data.layout"
    if "table" in task.reads:
        axes, accepted = (2, 3, 4), f"(N, D), {accepted}"
    if len(inputs.shape) not in axes:
        yield Problem(param, f"{name} has shape {inputs.shape}", accepted)
    if inputs.dtype not in ("u1", "f2", "f4", "f8"):
        yield Problem(param, f"{name} has dtype {inputs.dtype}", "uint8 or floating point")
    if 0 in inputs.shape:
        yield Problem(param, f"{name} is empty: shape {inputs.shape}", "at least one sample")


def _label_problems(
    data: ImageData, task: TaskSpec, inputs: ArrayFacts, labels: ArrayFacts, param: str
) -> Iterator[Problem]:
    if not task.has_label_shape(labels):
        found = f"shape {labels.shape} and dtype {labels.dtype}"
        yield Problem(param, f"array {data.label_key!r} has {found}", task.label_shape)
    elif inputs.shape and labels.shape[0] != inputs.shape[0]:
        yield Problem(param, f"{inputs.shape[0]} samples but {labels.shape[0]} labels", "one label per sample")


def _second_problems(data: ImageData, key: str, archive: Archive, param: str) -> Iterator[Problem]:
    """Problems of the second images of pairs."""
    first, second, field = archive[data.input_key], archive.get(key), "data.second_key"
    if param == "data.eval" and data.eval_second_key is not None:
        field = "data.eval_second_key"
    if second is None:
        yield Problem(field, f"{param} has no array {key!r}", f"one of {', '.join(sorted(archive))}")
    elif (second.shape, second.dtype) != (first.shape, first.dtype):
        found = f"array {key!r} has shape {second.shape} and dtype {second.dtype}"
        yield Problem(field, found, f"shape {first.shape} and dtype {first.dtype}, as array {data.input_key!r}")


def _mask_problems(data: ImageData, key: str, archive: Archive, param: str) -> Iterator[Problem]:
    """Problems of the masks of the images to evaluate on."""
    masks, given = archive.get(key), _input(data, archive[data.input_key])
    if masks is None:
        yield Problem("data.mask_key", f"{param} has no array {key!r}", f"one of {', '.join(sorted(archive))}")
    elif isinstance(given, ImageInput):
        shape = (archive[data.input_key].shape[0], given.height, given.width)
        if masks.shape != shape or masks.dtype[0] not in "biu":
            found = f"array {key!r} has shape {masks.shape} and dtype {masks.dtype}"
            yield Problem("data.mask_key", found, f"{shape}, integers or booleans")


def _input(data: ImageData, inputs: ArrayFacts) -> ImageInput | TableInput | tuple[str, str]:
    """The size of one sample; or its problem, and what is accepted."""
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
