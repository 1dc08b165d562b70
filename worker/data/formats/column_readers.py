"""Column readers: from the columns of a file to samples with inputs of any kind and the task's labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from app.recipe.data.sources import Data, HfData, ParquetData
from worker.data.archive import NDArray
from worker.data.formats.columns import (
    CellLocation,
    Column,
    Labels,
    Numbers,
    Samples,
    TextSamples,
    Values,
    Words,
    as_number,
    as_numbers,
    join_inputs,
)
from worker.data.formats.faults import invalid


class ColumnReader(ABC):
    """Reads columns of one kind of labels. A task with another kind of labels has its subclass: `label_column` and
    `join_labels` are enough for all formats but NumPy archives, which have arrays instead of columns.
    """

    has_classes: ClassVar[bool] = False
    """Whether the class names in a file belong to the labels."""

    optional: ClassVar[bool] = False
    """Whether a file may be without labels."""

    def __init__(self, task: str, *, texts: bool = False) -> None:
        """`task` is its name in messages; `texts`: inputs are texts, even if they could be read as numbers."""
        self._task, self._texts = task, texts

    def without_labels(self) -> ColumnReader:
        """A reader of the inputs alone."""
        return OptionalClassColumns(self._task, texts=self._texts)

    def for_data(self, data: Data) -> Self:
        """The reader for a file with the settings `data`."""
        return self

    def input_column(self, first: object, place: CellLocation, *, typed: bool) -> Column:
        """A column of inputs whose first value is `first`; `typed`: the format has typed values."""
        numeric = isinstance(first, list) or as_number(first, typed=typed) is not None
        return Words(place) if self._texts or not numeric else Numbers(place, typed=typed)

    def inputs_from_arrow(self, column: Any, place: CellLocation, data: ParquetData | HfData) -> Values:
        """A column of inputs, from a pyarrow ChunkedArray without null values."""
        return _arrow_values(column, place, data)

    @abstractmethod
    def label_column(self, place: CellLocation, *, typed: bool) -> Column:
        """A column of labels that is read row by row."""

    def labels_from_arrow(self, column: Any, place: CellLocation, data: ParquetData | HfData) -> Values:
        """A column of labels, from a pyarrow ChunkedArray without null values; by `label_column` unless overridden."""
        found = self.label_column(place, typed=True)
        for value in column.to_pylist():
            found.add(value)
        return found.whole()

    def labels_from_array(self, labels: NDArray, as_floats: Callable[[NDArray], NDArray]) -> Values:
        """The labels (N, ...) of a NumPy archive, of any dtype; `as_floats` converts to float32 and refuses values that
        are not finite."""
        return labels

    @abstractmethod
    def join_labels(self, columns: Mapping[str, Values], rows: int) -> Values:
        """The labels of `rows` samples; raises UserError (`invalid_data`) if the columns do not fit."""

    def assemble(
        self,
        inputs: Mapping[str, Values],
        labels: Mapping[str, Values],
        param: str,
        class_names: list[str] | None = None,
    ) -> Samples:
        """A file's columns as samples. Raises UserError if they do not fit each other or the task."""
        found = join_inputs(inputs, param)
        rows = len(found.first) if isinstance(found, TextSamples) else len(found)
        return Samples(found, self.join_labels(labels, rows), class_names)


class ClassColumns(ColumnReader):
    """One class per sample: its number or its name."""

    has_classes = True

    def label_column(self, place: CellLocation, *, typed: bool) -> Column:
        return Labels(place, typed=typed)

    def labels_from_arrow(self, column: Any, place: CellLocation, data: ParquetData | HfData) -> Values:
        from worker.data.formats.arrow_columns import read_classes  # pyarrow takes a tenth of a second to import

        return read_classes(column, place)

    def join_labels(self, columns: Mapping[str, Values], rows: int) -> Values:
        if len(columns) > 1:
            raise invalid(f"{len(columns)} columns of labels; accepted for {self._task}: one", "data.label_columns")
        return next(iter(columns.values()))


UNLABELLED = -1
"""Label of all samples of a file without labels."""


def is_unlabelled(samples: Samples) -> bool:
    """Whether a file was without labels."""
    return not isinstance(samples.labels, list) and bool((samples.labels == UNLABELLED).all())


class OptionalClassColumns(ClassColumns):
    """One class per sample, or none for all samples of a file."""

    optional = True

    def join_labels(self, columns: Mapping[str, Values], rows: int) -> Values:
        return super().join_labels(columns, rows) if columns else np.full(rows, UNLABELLED)


class NumberColumns(ColumnReader):
    """Numbers, or lists of numbers, concatenated over all columns."""

    def label_column(self, place: CellLocation, *, typed: bool) -> Column:
        return Numbers(place, typed=typed)

    def labels_from_arrow(self, column: Any, place: CellLocation, data: ParquetData | HfData) -> Values:
        return _arrow_values(column, place, data)

    def labels_from_array(self, labels: NDArray, as_floats: Callable[[NDArray], NDArray]) -> Values:
        return as_floats(labels).reshape(len(labels), -1)

    def join_labels(self, columns: Mapping[str, Values], rows: int) -> Values:
        nothing = np.empty((rows, 0), np.float32)  # pairs of texts may have no scores
        return np.concatenate([nothing, *(as_numbers(*item) for item in columns.items())], axis=1)


def _arrow_values(column: Any, place: CellLocation, data: ParquetData | HfData) -> Values:
    from worker.data.formats.arrow_columns import read_values  # pyarrow takes a tenth of a second to import

    return read_values(column, place, data)
