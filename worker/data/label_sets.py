"""Multi-label targets: from the classes of each sample in a file to 0 and 1 in the order of the job's classes.

Files, models and the contract may order classes differently. They are matched as for a single class per sample
(`worker.data.labels`): by name, or by number if there are no names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.recipe.data.classes import ClassList, ClassMismatch, match_classes
from app.recipe.data.sources import Data, ImageData
from app.recipe.job import JobSpec
from app.recipe.students.model import ModelConfig
from app.recipe.tasks.multi_label import MANY_LABELS
from worker.data.archive import NDArray
from worker.data.formats.columns import Samples
from worker.data.formats.faults import MAX_BYTES, data_subject, invalid, shown
from worker.data.labels import DATA, Classes, class_targets, find_classes, is_class
from worker.errors import UserError
from worker.limits import memory_limit, reading
from worker.tensors import IGNORED

CHUNK = 2**16
"""Rows checked at a time."""


def find_label_classes(job: JobSpec, models: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Classes:
    """The classes of the job, from the training file, the contract and the teachers. Raises UserError as `find_classes`
    does, and if a file has no label at all, or numbers whose classes are unknown."""
    for param, one in samples.items():
        _require_labels(one, param)
    _require_meaning(samples[DATA], job.data)
    train = samples[DATA]
    return find_classes(job, models, {DATA: train._replace(labels=_occurring(train.labels))})


def _require_labels(samples: Samples, param: str) -> None:
    there = any(samples.labels) if isinstance(samples.labels, list) else samples.labels.any()
    if not there:
        raise invalid(f"no sample of {param} has a label; accepted: some with one or more", param)


def _require_meaning(train: Samples, data: Data) -> None:
    """Raise UserError for lists of numbers without a list of classes."""
    known = data.class_order is not None or data.classes is not None or train.class_names is not None
    if not isinstance(train.labels, list) or known:
        return
    row = next(row for row, found in enumerate(train.labels) if found)
    if not isinstance(train.labels[row][0], str):
        found = f"the label column of {DATA} has the numbers {shown(train.labels[row])} in row {row}"
        accepted = "names of classes, or data.classes or data.class_order beside numbers of classes"
        raise invalid(f"{found}, and the classes are unknown; accepted: {accepted}", "data.label_columns")


def _occurring(labels: Any) -> Any:
    """The classes of a file, each once: numbers (C,) int64, or names in the order of their first samples."""
    if not isinstance(labels, list):
        return np.arange(labels.shape[1])
    found = list(dict.fromkeys(item for items in labels for item in items))
    return found if isinstance(found[0], str) else np.array(found, np.int64)


def label_targets(samples: Samples, classes: Classes, data: Data, param: str) -> tuple[Tensor, list[str]]:
    """Targets (N, C) float32 of 0 and 1, and notes on names that were matched although they are written differently;
    of more than `MANY_LABELS` classes the numbers (N, P) int32 of those of each sample, ascending, `IGNORED` behind the
    last, P being the most of any sample.

    Raises UserError naming a value that is neither 0 nor 1, or a label that is none of the classes, and its row.
    """
    width = most_labels(samples.labels) if classes.count > MANY_LABELS else classes.count
    rows, bytes_taken = len(samples.labels), 4 * len(samples.labels) * width
    if bytes_taken > MAX_BYTES:
        found = f"{rows} samples of {width} labels each take {bytes_taken} bytes"
        raise invalid(f"{found}; accepted: at most {MAX_BYTES}", param)
    with reading(data_subject(param), memory_limit(bytes_taken, 2)):
        if isinstance(samples.labels, list):
            return _of_lists(samples, classes, data, param)
        return _of_array(samples.labels, samples.class_names, classes, data, param)


def most_labels(labels: Any) -> int:
    """Most labels of a sample, from lists of them or 0 and 1 (N, C); at least 1."""
    if isinstance(labels, list):
        return max(1, *(len(items) for items in labels))
    parts = range(0, len(labels), CHUNK)
    return max(1, *(int(np.count_nonzero(labels[first : first + CHUNK], axis=1).max()) for first in parts))


def _listed(rows: Tensor, columns: Tensor, count: int) -> Tensor:
    """Numbers (N, P) int32 of the labels of `count` samples, from the row and the column of each, both int64, each pair
    once."""
    order = (rows * (int(columns.max()) + 1) + columns).argsort()
    rows, columns = rows[order], columns[order]
    lengths = rows.bincount(minlength=count)
    place = torch.arange(len(rows)) - (lengths.cumsum(0) - lengths)[rows]
    found = torch.full((count, max(1, int(lengths.max()))), IGNORED, dtype=torch.int32)
    found[rows, place] = columns.int()
    return found


def _of_array(
    labels: NDArray, names: list[str] | None, classes: Classes, data: Data, param: str
) -> tuple[Tensor, list[str]]:
    """Targets from labels (N, C) of 0 and 1."""
    found = ClassList(param, labels.shape[1], names)
    if found.count != classes.count:
        message = f"{param} has labels of {found.count} classes, and there are {classes.count}: {classes.listed.shown}"
        raise invalid(f"{message}; accepted: 0 or 1 for each class", param)
    try:
        match = match_classes(found, classes.listed) if names is not None else None
    except ClassMismatch as error:
        raise invalid(f"{error}; accepted: a column of labels for each class", param) from None
    _require_flags(labels, data, param)
    places, notes = match.places if match else list(range(found.count)), [match.note] if match and match.note else []
    if classes.count > MANY_LABELS:
        rows, columns = (torch.from_numpy(each) for each in np.nonzero(labels))
        return _listed(rows, torch.tensor(places)[columns], len(labels)), notes
    targets = torch.zeros(len(labels), classes.count)
    targets[:, places] = torch.from_numpy(labels.astype(np.float32))
    return targets, notes


def _require_flags(labels: NDArray, data: Data, param: str) -> None:
    name = f"array {data.label_key!r} of {param}" if isinstance(data, ImageData) else f"the labels of {param}"
    for first in range(0, len(labels), CHUNK):
        part = labels[first : first + CHUNK]
        wrong = (part != 0) & (part != 1)  # NaN is neither
        if wrong.any():
            row, column = (int(place) for place in np.unravel_index(int(wrong.argmax()), wrong.shape))
            value = part[row, column].item()
            raise invalid(f"{name} has {value} in row {first + row}, column {column}; accepted: 0 or 1", param)


def _of_lists(samples: Samples, classes: Classes, data: Data, param: str) -> tuple[Tensor, list[str]]:
    lists, found = samples.labels, _occurring(samples.labels)
    try:
        places, notes = class_targets(samples._replace(labels=found), classes, data, param)
    except UserError:
        _refuse_unknown(samples, classes, param)
        raise
    place = dict(zip(found if isinstance(found, list) else found.tolist(), places.tolist(), strict=True))
    lengths = torch.tensor([len(items) for items in lists])
    columns = torch.tensor([place[item] for items in lists for item in items])
    rows = torch.arange(len(lists)).repeat_interleave(lengths)
    if classes.count > MANY_LABELS:
        pairs = torch.unique(torch.stack([rows, columns], 1), dim=0)  # two names may be one class
        return _listed(pairs[:, 0], pairs[:, 1], len(lists)), notes
    targets = torch.zeros(len(lists), classes.count)
    targets[rows, columns] = 1.0
    return targets, notes


def _refuse_unknown(samples: Samples, classes: Classes, param: str) -> None:
    """Raise UserError naming the first row with a label that is no class, if there is one."""
    count = classes.count if samples.class_names is None else len(samples.class_names)
    known: set[Any] = set(classes.names or ()) | set(range(count))
    for row, items in enumerate(samples.labels):
        for item in items:
            if item in known or (isinstance(item, str) and is_class(item, classes)):
                known.add(item)
                continue
            accepted = classes.listed.shown if isinstance(item, str) else f"numbers from 0 to {count - 1}"
            raise invalid(f"label {shown(item)} in row {row} of {param} is no class; accepted: {accepted}", param)
