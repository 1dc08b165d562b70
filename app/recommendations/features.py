"""Features of a distillation: data, teacher, student and recipe as named numbers, the input of the regression.

A name with `=` is a choice, 1 where it was made and absent elsewhere; every other absent feature is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Features = dict[str, float]
CHOICE = "="
TAGS = ("kind", "architecture", "model_type")
"""Fields that name what the others in their object describe."""
IGNORED_FIELDS = frozenset({"checkpoint", "compile", "channels_last", "description"})
"""Fields that do not change what is learned, or are free text."""


class DataFacts(NamedTuple):
    """Facts about the data of a job; None: unknown."""

    task: str
    samples: int | None = None
    """Training samples."""
    outputs: int | None = None
    """Classes, or numbers to predict."""
    embedding: tuple[float, ...] | None = None
    """Mean embedding by the teacher (`report.data.embedding.values`)."""


class ModelFacts(NamedTuple):
    """Facts about a teacher or a student; None: unknown."""

    network: Mapping[str, Any] | None = None
    """Description of its architecture."""
    parameters: int | None = None
    score: float | None = None
    """Its main metric on the job's held-out samples."""


class Distillation(NamedTuple):
    """What the features are taken from."""

    data: DataFacts
    teacher: ModelFacts
    student: ModelFacts
    recipe: Mapping[str, Any]

    def features(self) -> Features:
        """All known features."""
        return dict(_named(self))

    def as_of_new_data(self) -> Distillation:
        """Without what is measured only by running a job on the data: the embedding and the teacher's score."""
        return self._replace(data=self.data._replace(embedding=None), teacher=self.teacher._replace(score=None))


def _named(one: Distillation) -> Iterator[tuple[str, float]]:
    data = one.data
    yield f"data.task{CHOICE}{data.task}", 1.0
    yield from _logarithm("data.samples", data.samples)
    yield from _logarithm("data.outputs", data.outputs)
    yield from ((f"data.embedding.{index}", value) for index, value in enumerate(data.embedding or ()))
    for name, model in (("teacher", one.teacher), ("student", one.student)):
        yield from _logarithm(f"{name}.parameters", model.parameters)
        yield from _flattened(name, model.network or {})
    if one.teacher.score is not None:
        yield "teacher.score", one.teacher.score
    if one.teacher.parameters and one.student.parameters:
        yield "log compression", math.log10(one.teacher.parameters / one.student.parameters)
    yield from _flattened("recipe", one.recipe)


def _logarithm(name: str, value: int | None) -> Iterator[tuple[str, float]]:
    if value:
        yield f"log {name}", math.log10(value)


def _flattened(path: str, node: Any) -> Iterator[tuple[str, float]]:
    """Numbers by their paths, choices, and lengths of lists; objects of a list are found by their tags."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key not in IGNORED_FIELDS:
                yield from _flattened(f"{path}.{key}", value)
    elif isinstance(node, list):
        yield f"{path}.length", float(len(node))
        yield from _items(path, node)
    elif isinstance(node, str):
        yield f"{path}{CHOICE}{node}", 1.0
    elif isinstance(node, int | float) and math.isfinite(node):
        yield path, float(node)


def _items(path: str, nodes: list[Any]) -> Iterator[tuple[str, float]]:
    """Of a list of objects each one's features, by its tag; of numbers their sum."""
    numbers = [node for node in nodes if isinstance(node, int | float)]
    if numbers:
        yield f"{path}.sum", float(sum(numbers))
    for node in nodes:
        if isinstance(node, Mapping):
            tag = next((str(node[name]) for name in TAGS if name in node), "")
            yield from _flattened(f"{path}.{tag}", node)


def columns_of(rows: Iterable[Features]) -> list[str]:
    """Names of all features that are not the same in every row, sorted."""
    seen: dict[str, set[float]] = {}
    rows = list(rows)
    for row in rows:
        for name, value in row.items():
            seen.setdefault(name, set()).add(value)
    counts = {name: sum(name in row for row in rows) for name in seen}
    return sorted(name for name, values in seen.items() if len(values) > 1 or counts[name] < len(rows))


def matrix(rows: Iterable[Features], columns: list[str]) -> list[list[float]]:
    """The rows as numbers in the order of `columns`; NaN where a feature is missing, 0 for a choice not made."""
    return [[row.get(name, 0.0 if CHOICE in name else math.nan) for name in columns] for row in rows]
