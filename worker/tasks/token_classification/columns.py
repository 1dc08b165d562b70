"""Reads columns of words and of their tags.

A text is its words with a space between each two of them. A word that holds white space itself comes in several pieces
there, of which the first one bears its tag; one of nothing but white space leaves nothing, and neither does its tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from app.recipe.data.sources import HfData, ParquetData
from worker.data.formats.column_readers import ColumnReader
from worker.data.formats.columns import (
    CLASS_NAME,
    CellLocation,
    Column,
    Samples,
    TextSamples,
    Values,
    as_class,
    is_class_name,
    is_whole,
    require_characters,
)
from worker.data.formats.faults import invalid

Tag = str | int
PieceTags = list[Tag | None]
"""For each piece of a text the tag of the word that it begins; none: it begins no word."""


class WordLists:
    """Lists of words; in a format without types of its own, what stands between spaces."""

    def __init__(self, place: CellLocation, *, typed: bool) -> None:
        self._place, self._typed = place, typed
        self._values: list[list[str]] = []

    def add(self, value: object) -> None:
        """See `Column`."""
        words = value.split() if isinstance(value, str) and not self._typed else value
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise self._place.wrong(len(self._values), value, "a list of words, each of them text")
        if not any(word.strip() for word in words):
            raise self._place.wrong(len(self._values), value, "a list of words, at least one that is not empty")
        for word in words:
            require_characters(word, self._place, len(self._values))
        self._values.append(words)

    def whole(self) -> list[list[str]]:
        """N lists of words."""
        return self._values


class TagLists:
    """Lists of tags, all of them names or all numbers; in a format without types of its own, what stands between
    spaces, and numbers where all are whole ones."""

    def __init__(self, place: CellLocation, *, typed: bool) -> None:
        self._place, self._typed = place, typed
        self._values: list[list[Tag]] = []
        self._kind: type | None = None
        self._known: dict[str, str] = {}
        """Of equal names one is kept."""

    def add(self, value: object) -> None:
        """See `Column`."""
        tags = value.split() if isinstance(value, str) and not self._typed else value
        if not isinstance(tags, list):
            raise self._place.wrong(len(self._values), value, "a list of tags, one for every word")
        self._values.append([self._tag(tag) for tag in tags])

    def _tag(self, value: object) -> Tag:
        tag = value if isinstance(value, str) else as_class(value)
        self._kind = self._kind or (None if tag is None else type(tag))
        if tag is None or type(tag) is not self._kind:
            usual = {str: "a name", int: "a whole number below 2**63"}
            accepted = "a name or a whole number" if self._kind is None else f"{usual[self._kind]}, as the first tag is"
            raise self._place.wrong(len(self._values), value, f"{accepted}, for every word")
        if isinstance(tag, int):
            return tag
        if tag not in self._known:
            if not is_class_name(tag):
                raise self._place.wrong(len(self._values), tag, CLASS_NAME)
            self._known[tag] = tag
        return self._known[tag]

    def whole(self) -> list[list[Tag]]:
        """N lists of tags."""
        if self._typed or not all(map(is_whole, self._known)):
            return self._values
        found = [[as_class(int(tag)) for tag in tags] for tags in self._values]
        for row, tags in enumerate(found):
            if None in tags:
                raise self._place.wrong(row, self._values[row][tags.index(None)], "a whole number below 2**63")
        return cast(list[list[Tag]], found)


class WordColumns(ColumnReader):
    """A column of lists of words, and one of as many tags."""

    has_classes = True

    def input_column(self, first: object, place: CellLocation, *, typed: bool) -> Column:
        return WordLists(place, typed=typed)

    def inputs_from_arrow(self, column: Any, place: CellLocation, data: ParquetData | HfData) -> Values:
        found = WordLists(place, typed=True)
        for value in column.to_pylist():
            found.add(value)
        return found.whole()

    def label_column(self, place: CellLocation, *, typed: bool) -> Column:
        return TagLists(place, typed=typed)

    def join_labels(self, columns: Mapping[str, Values], rows: int) -> Values:
        (tags,) = columns.values()  # the contract refuses several
        return tags

    def assemble(
        self,
        inputs: Mapping[str, Values],
        labels: Mapping[str, Values],
        param: str,
        class_names: list[str] | None = None,
    ) -> Samples:
        """Texts, with the tags of their pieces for labels."""
        (words,) = inputs.values()
        tags = self.join_labels(labels, len(words))
        for row, (some, own) in enumerate(zip(words, tags, strict=True)):
            if len(some) != len(own):
                found = f"row {row} of {param} has {len(some)} words and {len(own)} tags"
                raise invalid(f"{found}; accepted: a tag for every word", param)
        pieces = [piece_tags(*row) for row in zip(words, tags, strict=True)]
        empty = sum(not word.strip() for word in chain.from_iterable(words))
        notes = (f"{empty} words of {param} are empty, so that nothing is learned of their tags",) if empty else ()
        return Samples(TextSamples([" ".join(some) for some in words]), pieces, class_names, notes=notes)


def piece_tags(words: Sequence[str], tags: Sequence[Tag]) -> PieceTags:
    """The tags of what stands between white spaces once the words are joined."""
    return list(_pieces(words, tags))


def _pieces(words: Sequence[str], tags: Sequence[Tag]) -> Iterator[Tag | None]:
    for word, tag in zip(words, tags, strict=True):
        count = len(word.split())
        yield from [tag, *[None] * (count - 1)] if count else ()
