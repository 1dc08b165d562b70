"""Columns of queries, lists of candidates for them, and lists of the candidates' scores; or of texts and pairs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from itertools import chain
from typing import Any, Self, cast

from app.recipe.data.sources import Data, HfData, ParquetData, Table
from worker.data.formats.column_readers import NumberColumns
from worker.data.formats.columns import (
    FLOAT_MAX,
    Candidates,
    CellLocation,
    Column,
    Samples,
    TextSamples,
    Values,
    as_number,
    join_inputs,
    require_characters,
)
from worker.data.formats.faults import invalid

MOST_CANDIDATES = 512
"""Most texts of one list."""


class TextLists:
    """A column of lists of texts."""

    def __init__(self, place: CellLocation, least: int) -> None:
        """`least`: fewest texts of a list."""
        self._place, self._least = place, least
        self._values: list[list[str]] = []

    def add(self, value: object) -> None:
        row = len(self._values)
        texts = [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
        if not isinstance(value, list) or len(texts) < len(value):
            raise self._place.wrong(row, value, "a list of texts")
        if not self._least <= len(texts) <= MOST_CANDIDATES:
            raise self._place.wrong(row, value, f"a list of {self._least} to {MOST_CANDIDATES} texts")
        for text in texts:
            require_characters(text, self._place, row)
        self._values.append(texts)

    def whole(self) -> list[Any]:
        """N lists of texts."""
        return self._values


class ScoreLists:
    """A column of lists of finite numbers, which may have different lengths."""

    def __init__(self, place: CellLocation) -> None:
        self._place = place
        self._values: list[list[float]] = []

    def add(self, value: object) -> None:
        numbers = [as_number(item, typed=True) for item in value] if isinstance(value, list) else [None]
        found = [number for number in numbers if number is not None and abs(number) <= FLOAT_MAX]
        if len(found) < len(numbers):
            raise self._place.wrong(len(self._values), value, "a list of finite 32-bit numbers")
        self._values.append(found)

    def whole(self) -> list[Any]:
        """N lists of numbers."""
        return self._values


class CandidateColumns(NumberColumns):
    """Queries with lists of candidates and of scores, if the data name columns of candidates; else numbers as labels of
    texts."""

    _candidates: tuple[str, ...] = ()

    def for_data(self, data: Data) -> Self:
        found = copy(self)
        found._candidates = tuple(data.candidate_columns) if isinstance(data, Table) else ()
        return found

    def input_column(self, first: object, place: CellLocation, *, typed: bool) -> Column:
        return self._lists(place) or super().input_column(first, place, typed=typed)

    def inputs_from_arrow(self, column: Any, place: CellLocation, data: ParquetData | HfData) -> Values:
        lists = self._lists(place)
        return super().inputs_from_arrow(column, place, data) if lists is None else _filled(lists, column)

    def label_column(self, place: CellLocation, *, typed: bool) -> Column:
        return ScoreLists(place) if self._candidates else super().label_column(place, typed=typed)

    def labels_from_arrow(self, column: Any, place: CellLocation, data: ParquetData | HfData) -> Values:
        if self._candidates:
            return _filled(ScoreLists(place), column)
        return super().labels_from_arrow(column, place, data)

    def _lists(self, place: CellLocation) -> TextLists | None:
        """The column of candidates at `place`; none: it has other texts. The last one of two may have empty lists."""
        if place.column not in self._candidates:
            return None
        return TextLists(place, least=1 if place.column == self._candidates[0] else 0)

    def assemble(
        self,
        inputs: Mapping[str, Values],
        labels: Mapping[str, Values],
        param: str,
        class_names: list[str] | None = None,
    ) -> Samples:
        if not self._candidates:
            return super().assemble(inputs, labels, param, class_names)
        queries = join_inputs({name: values for name, values in inputs.items() if name not in self._candidates}, param)
        if not isinstance(queries, TextSamples):
            raise invalid(f"the columns of {param} have no texts; accepted: one of queries", "data.input_columns")
        first, *further = (cast(list[list[str]], inputs[name]) for name in self._candidates)
        if further:
            both = zip(first, further[0], strict=True)
            candidates = [Candidates([*right, *wrong], len(right)) for right, wrong in both]
        else:
            candidates = [Candidates(texts, 1) for texts in first]
        for name, scores in labels.items():
            _require_equal_lengths(CellLocation(param, name), cast(list[list[float]], scores), candidates)
        scored = next(iter(labels.values()), [])
        return Samples(TextSamples(queries.first, candidates=candidates), scored)


def _filled(column: TextLists | ScoreLists, values: Any) -> Values:
    """The column with the values of a pyarrow ChunkedArray."""
    for value in chain.from_iterable(chunk.to_pylist() for chunk in values.chunks):
        column.add(value)
    return column.whole()


def _require_equal_lengths(place: CellLocation, scores: list[list[float]], candidates: list[Candidates]) -> None:
    for row, (numbers, (texts, _)) in enumerate(zip(scores, candidates, strict=True)):
        if len(numbers) != len(texts):
            raise place.wrong(row, numbers, f"{len(texts)} numbers, one for each candidate")
