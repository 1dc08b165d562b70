"""Multi-label columns: lists of names or numbers of classes, or 0 and 1 for each class."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from copy import copy
from typing import Any, Self

import numpy as np

from app.recipe.data.sources import CsvData, Data, HfData, ParquetData, Table
from worker.data.archive import NDArray
from worker.data.formats.column_readers import ColumnReader
from worker.data.formats.columns import (
    CLASS_NAME,
    CellLocation,
    Column,
    Samples,
    Values,
    as_class,
    as_number,
    is_class_name,
    is_whole,
    require_characters,
)

WORDS = {"true": 1, "false": 0}
"""Flags as text in an untyped format, in addition to numbers."""


class Flags:
    """A column of 0 and 1, or booleans."""

    def __init__(self, place: CellLocation, *, typed: bool) -> None:
        self._place, self._typed = place, typed
        self._values = array("B")

    def add(self, value: object) -> None:
        flag = value if self._typed else _read_flag(value)
        if not isinstance(flag, str | list) and flag in (0, 1):
            self._values.append(int(flag == 1))
            return
        raise self._place.wrong(len(self._values), value, "0 or 1")

    def whole(self) -> NDArray:
        """(N,) uint8."""
        return np.frombuffer(self._values, np.uint8)


def _read_flag(value: object) -> object:
    text = str(value)
    return WORDS.get(text.strip().lower(), as_number(text, typed=False))


class NameLists:
    """A column of lists of classes, all names or all whole numbers; lists may be empty."""

    def __init__(self, place: CellLocation, separator: str | None) -> None:
        """`separator` is between names in an untyped format; none: the format has lists."""
        self._place, self._separator = place, separator
        self._values: list[list[Any]] = []
        self._known: dict[str, str] = {}
        """One object for equal names."""
        self._kind: type | None = None

    def add(self, value: object) -> None:
        items = value if self._separator is None else self._split(value)
        if not isinstance(items, list):
            raise self._place.wrong(len(self._values), value, "a list of names of classes")
        found = [self._item(item, value) for item in items]
        self._require_each_once(found, value)
        self._values.append(found)

    def _split(self, value: object) -> list[str]:
        """The names in a text, without the spaces around them; an empty text has no names."""
        text = str(value)
        names = [name.strip() for name in text.split(self._separator)] if text.strip() else []
        if not all(names):
            accepted = f"names separated by {self._separator!r}, none of them empty"
            raise self._place.wrong(len(self._values), value, accepted)
        return names

    def _item(self, item: object, value: object) -> str | int:
        found = item if isinstance(item, str) else _number(item)
        if found is None or type(found) is not (self._kind or type(found)):
            wanted = {str: "names of classes", int: "whole numbers of classes"}.get(self._kind or object)
            accepted = f"a list of {wanted}, as in the rows before" if wanted else "a list of names of classes"
            raise self._place.wrong(len(self._values), value, accepted)
        self._kind = type(found)
        return self._name(found, value) if isinstance(found, str) else found

    def _name(self, name: str, value: object) -> str:
        if name not in self._known:
            require_characters(name, self._place, len(self._values))
            if not is_class_name(name):
                raise self._place.wrong(len(self._values), value, f"names of classes, each {CLASS_NAME}")
            self._known[name] = name
        return self._known[name]

    def _require_each_once(self, items: list[Any], value: object) -> None:
        """Refuse a number that is there twice, because such a list is not of classes; a repeated name is allowed."""
        if self._kind is int and len(set(items)) < len(items):
            accepted = "numbers of classes, each once; 0 and 1 for every class in a column for each class"
            raise self._place.wrong(len(self._values), value, accepted)

    def whole(self) -> list[Any]:
        """N lists of names, or of numbers; an untyped format has numbers if all names are whole numbers."""
        if self._separator is None or not self._known or not all(map(is_whole, self._known)):
            return [list(dict.fromkeys(items)) for items in self._values]
        numbers = NameLists(self._place, None)
        for names in self._values:
            numbers.add([int(name) for name in names])
        return numbers.whole()


def _number(item: object) -> int | None:
    number = None if isinstance(item, bool) else as_class(item)
    return number if number is not None and number >= 0 else None


class LabelColumns(ColumnReader):
    """Any number of classes per sample: a column of lists, or a column of 0 and 1 for each class, with its name."""

    has_classes = True
    _lists, _separator = True, "|"

    def for_data(self, data: Data) -> Self:
        found = copy(self)
        found._lists = isinstance(data, Table) and len(data.label_columns) == 1
        found._separator = data.separates_labels if isinstance(data, CsvData) else self._separator
        return found

    def label_column(self, place: CellLocation, *, typed: bool) -> Column:
        if self._lists:
            return NameLists(place, None if typed else self._separator)
        return Flags(place, typed=typed)

    def labels_from_arrow(self, column: Any, place: CellLocation, data: ParquetData | HfData) -> Values:
        import pyarrow as pa  # which takes a tenth of a second

        kind = column.type
        plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if self._lists or not plain:
            return super().labels_from_arrow(column, place, data)
        values: NDArray = column.cast(pa.float64(), safe=False).to_numpy()
        wrong = (values != 0) & (values != 1)
        if wrong.any():
            row = int(wrong.argmax())
            raise place.wrong(row, column[row].as_py(), "0 or 1")
        return values.astype(np.uint8)

    def join_labels(self, columns: Mapping[str, Values], rows: int) -> Values:
        if self._lists:
            return next(iter(columns.values()))
        return np.stack([np.asarray(column) for column in columns.values()], axis=1)

    def assemble(
        self,
        inputs: Mapping[str, Values],
        labels: Mapping[str, Values],
        param: str,
        class_names: list[str] | None = None,
    ) -> Samples:
        return super().assemble(inputs, labels, param, class_names if self._lists else list(labels))
