"""From labels as they were stored to targets: numbers of classes with their names, or numbers as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.recipe.data import Data, ImageData
from app.recipe.model import MAX_CLASSES, ModelConfig
from worker.data.archive import NDArray
from worker.data.formats.columns import Samples
from worker.data.formats.faults import invalid, listed, shown

Labels = NDArray | list[str]
MAX_NAMES_BYTES = 2 * 2**20
"""Of all classes, as JSON; a model's description has them twice, and may have four times that."""


@dataclass(frozen=True)
class Classes:
    """The classes of a job: how many, and their names where they have any."""

    count: int
    names: list[str] | None


def find_classes(data: Data, teacher: ModelConfig | None, samples: Mapping[str, Samples]) -> Classes:
    """The classes that the training file, the contract and the teacher speak of. Raises UserError (`invalid_data`)."""
    train = samples["data.train"]
    names = _names(train, teacher)
    count = data.classes or (teacher.classes if teacher else None) or (len(names) if names else _counted(samples))
    if not 2 <= count <= MAX_CLASSES:
        found = f"the classes are {listed(names)}" if names else f"the largest label is {count - 1}"
        accepted = f"labels from 0, at least two classes, at most {MAX_CLASSES}"
        raise invalid(f"{found}; accepted: {accepted}", "data.train")
    if names is not None and len(names) != count:
        raise invalid(f"{len(names)} classes have names, but there are {count}", "data.classes")
    if names is not None and len(json.dumps(names)) > MAX_NAMES_BYTES:
        found = f"the names of the {count} classes take more than {MAX_NAMES_BYTES} bytes together"
        raise invalid(f"{found}; accepted: shorter names", "data.train")
    return Classes(count, names)


def _names(train: Samples, teacher: ModelConfig | None) -> list[str] | None:
    if isinstance(train.labels, list):
        return _sorted_names(train.labels, teacher)
    return train.class_names or (teacher.class_names if teacher else None)


def _sorted_names(labels: list[str], teacher: ModelConfig | None) -> list[str]:
    """The teacher's order, if it knows all of the names."""
    names = sorted(set(labels))
    known = teacher.class_names if teacher else None
    return known if known and set(names) <= set(known) else names


def _counted(samples: Mapping[str, Samples]) -> int:
    return max(int(one.labels.max()) for one in samples.values() if not isinstance(one.labels, list)) + 1


def class_targets(samples: Samples, classes: Classes, data: Data, param: str) -> Tensor:
    """Classes (N,) int64. Raises UserError naming the label that is none of them, and its index."""
    if isinstance(samples.labels, list):
        return torch.from_numpy(_numbered(samples.labels, classes, param))
    if samples.class_names not in (None, classes.names):
        raise invalid(f"the classes of {param} have other names than those of data.train", param)
    wrong = (samples.labels < 0) | (samples.labels >= classes.count)
    if wrong.any():
        index = int(wrong.argmax())
        where = f"of array {data.label_key!r}" if isinstance(data, ImageData) else f"of {param}"
        found = f"label {samples.labels[index]} at index {index} {where}"
        raise invalid(f"{found} is outside 0..{classes.count - 1}", param)
    return torch.from_numpy(samples.labels.astype(np.int64))


def _numbered(labels: list[str], classes: Classes, param: str) -> NDArray:
    number = {name: index for index, name in enumerate(classes.names or ())}
    for index, label in enumerate(labels):
        if label not in number:
            known = ", ".join(shown(name) for name in list(number)[:20]) or "numbers"
            raise invalid(f"label {shown(label)} at index {index} of {param} is no class; there are {known}", param)
    return np.array([number[label] for label in labels], np.int64)
