"""Columns of a table, collected row by row, and the samples made of them."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from worker.data.archive import NDArray
from worker.data.formats.faults import invalid, shown
from worker.errors import UserError


class ChatMessage(NamedTuple):
    """One message of a chat."""

    role: str
    content: str
    more: Mapping[str, Any] = MappingProxyType({})
    """Other keys, such as `name` or `reasoning_content`, which a template may use."""


T = TypeVar("T")
Talk = list[ChatMessage]
Values = NDArray | list[Any]
"""One column: texts or names, chats, lists of names, texts or numbers, classes (N,) int64, 0 and 1 (N,) uint8, numbers
(N, T) float32, or images (N, C, H, W) uint8."""


class Candidates(NamedTuple):
    """Candidates for one query."""

    texts: list[str]
    """The positives, then the negatives."""
    positives: int


class TextSamples(NamedTuple):
    """N texts, N pairs of them, or N queries with candidates."""

    first: list[str]
    second: list[str] | None = None
    candidates: list[Candidates] | None = None


class Chats(NamedTuple):
    """N conversations."""

    talks: list[Talk]


MOST_EXAMPLES = 10
"""Most examples in a note."""
RUN_ROWS = 1024
RUN_CHARACTERS = 2**20
_WHOLE = re.compile(r"\s*-?[0-9]{1,400}\s*", re.A)
_NUMBER = re.compile(r"\s*[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf(inity)?)\s*", re.A | re.I)
MAX_NAME = 1024
"""Characters of a class's name."""
CLASS_NAME = f"text that is not empty, of at most {MAX_NAME} characters, without NUL"
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair; alone, it is no character."""
FLOAT_MAX = float(np.finfo(np.float32).max)


def in_runs(values: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """The values in their order, in lists of up to a thousand values or about a million characters; `size` returns the
    characters of a value."""
    run: list[T] = []
    characters = 0
    for value in values:
        run.append(value)
        characters += size(value)
        if len(run) == RUN_ROWS or characters >= RUN_CHARACTERS:
            yield run
            run, characters = [], 0
    if run:
        yield run


class Samples(NamedTuple):
    """A file's samples as stored."""

    inputs: NDArray | TextSamples
    """Images (N, C, H, W) uint8 or float32, a table (N, D) float32, or texts."""
    labels: Values
    """Classes (N,) int64 or names of classes, 0 and 1 (N, C), lists of classes or of scores, numbers (N, T) float32, or
    other values of the task's `ColumnReader`."""
    class_names: list[str] | None = None
    """Names of the classes 0, 1, ..., if the file has them."""
    rows_per_sample: int = 1
    """Rows that make one sample: 2 for pairs of texts that are encoded separately, more for lists of them."""
    notes: tuple[str, ...] = ()
    """Warnings about the file."""
    masks: NDArray | None = None
    """Masks (N, H, W) bool of images, true at anomalous pixels; none: they are not read, or there are none."""


class CellLocation(NamedTuple):
    """Location of a value, for messages; rows count from 0, without a header line."""

    param: str
    column: str
    first: int = 0
    """Number of the first row of this part."""

    def wrong(self, row: int, value: object, accepted: str) -> UserError:
        """The error for a value in row `row` of this part."""
        row += self.first
        message = f"column {self.column!r} of {self.param} has {shown(value)} in row {row}; accepted: {accepted}"
        return invalid(message, self.param)


class Column(Protocol):
    """Collects the values of one column."""

    def add(self, value: object) -> None:
        """Append a value. Raises UserError naming row, column and value."""

    def whole(self) -> Values:
        """All values."""
        ...


class Numbers:
    """Finite numbers, or lists of numbers of one length."""

    def __init__(self, place: CellLocation, *, typed: bool) -> None:
        self._place, self._typed = place, typed
        self._values, self._width, self._rows = array("d"), 0, 0

    def add(self, value: object) -> None:
        row = value if isinstance(value, list) else [value]
        self._width = self._width or len(row)
        if len(row) != self._width or not row:
            raise self._place.wrong(self._rows, value, f"{self._width or 'some'} numbers, as in row 0")
        self._values.extend(self._number(item) for item in row)
        self._rows += 1

    def _number(self, value: object) -> float:
        number = as_number(value, typed=self._typed)
        if number is None or not abs(number) <= FLOAT_MAX:
            raise self._place.wrong(self._rows, value, "a finite 32-bit number")
        return number

    def whole(self) -> NDArray:
        """(N, width) float32."""
        return np.frombuffer(self._values, np.float64).astype(np.float32).reshape(self._rows, -1)


class Words:
    """Texts."""

    def __init__(self, place: CellLocation) -> None:
        self._place = place
        self._values: list[str] = []

    def add(self, value: object) -> None:
        if not isinstance(value, str):
            raise self._place.wrong(len(self._values), value, "text")
        require_characters(value, self._place, len(self._values))
        self._values.append(value)

    def whole(self) -> list[str]:
        """N texts."""
        return self._values


class Talks:
    """Chats: lists of objects with a `role` and a `content`."""

    def __init__(self, place: CellLocation) -> None:
        self._place = place
        self._values: list[Talk] = []

    def add(self, value: object) -> None:
        rows = value if isinstance(value, list) else []
        talk = [message for message in map(_message, rows) if message is not None]
        if not talk or len(talk) < len(rows):
            raise self._place.wrong(len(self._values), value, "a list of messages, each with a role and a content")
        for message in talk:
            for text in (message.role, message.content, *_texts_in(message.more)):
                require_characters(text, self._place, len(self._values))
        self._values.append(talk)

    def whole(self) -> list[Talk]:
        """N chats."""
        return self._values


def _message(value: object) -> ChatMessage | None:
    if not isinstance(value, dict):
        return None
    role, content = value.get("role"), value.get("content")
    more = {key: item for key, item in value.items() if key not in ("role", "content") and item is not None}
    return ChatMessage(role, content, more) if isinstance(role, str) and isinstance(content, str) else None


def _texts_in(value: object) -> Iterator[str]:
    """All texts of a JSON value, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in(inner)


class Labels:
    """Numbers of classes, or their names: numbers if all values are whole numbers; an untyped format writes them as
    text."""

    def __init__(self, place: CellLocation, *, typed: bool) -> None:
        self._place, self._typed = place, typed
        self._values: list[str | int] = []
        self._known: dict[str, str] = {}
        """One object for equal names."""

    def add(self, value: object) -> None:
        label = value if isinstance(value, str) else as_class(value)
        wanted = type(self._values[0]) if self._values else None
        if label is None or (self._typed and wanted not in (None, type(label))):
            accepted = "text" if wanted is str else "a whole number below 2**63"
            accepted += ", or text" if wanted is None else ", as in row 0"
            raise self._place.wrong(len(self._values), value, accepted)
        if isinstance(label, str) and label not in self._known:
            require_characters(label, self._place, len(self._values))
            self._known[label] = label
        self._values.append(self._known[label] if isinstance(label, str) else label)

    @property
    def notes(self) -> tuple[str, ...]:
        """A warning about numbers that are written in several forms, such as `7` and `007`, and may be meant to
        differ."""
        if self._typed or not all(map(is_whole, self._known)):
            return ()
        written: dict[int, list[str]] = {}
        for label in self._known:
            written.setdefault(int(label), []).append(label)
        pairs = [f"{ways[0]!r} and {ways[1]!r}" for _, ways in sorted(written.items()) if len(ways) > 1]
        if not pairs:
            return ()
        listed = ", ".join(pairs[:MOST_EXAMPLES]) + (
            f" and {len(pairs) - MOST_EXAMPLES} more" if len(pairs) > MOST_EXAMPLES else ""
        )
        where = f"column {self._place.column!r} of {self._place.param}"
        return (f"{where} writes classes in several ways, which are read as one number: {listed}",)

    def whole(self) -> NDArray | list[str]:
        """(N,) int64, or N names."""
        if not self._typed and all(map(is_whole, self._known)):
            self._values = [int(value) for value in self._values]
        names = [value for value in self._values if isinstance(value, str)]
        if names:
            self._require_names(names)
            return names
        for row, number in enumerate(self._values):
            if as_class(number) is None:
                raise self._place.wrong(row, number, "a whole number below 2**63")
        return np.array(self._values, np.int64)

    def _require_names(self, names: list[str]) -> None:
        refused = {name for name in self._known if not is_class_name(name)}
        if refused:
            row = next(row for row, name in enumerate(names) if name in refused)
            raise self._place.wrong(row, names[row], CLASS_NAME)


def is_class_name(name: object) -> bool:
    """Whether a class can have this name."""
    if not isinstance(name, str) or not name or "\0" in name or len(name) > MAX_NAME:
        return False
    return not SURROGATE.search(name)


def is_whole(text: str) -> bool:
    """Whether a text is a whole number, possibly with spaces around it."""
    return _WHOLE.fullmatch(text) is not None


def require_characters(text: str, place: CellLocation, row: int) -> None:
    """Raise UserError if a text has half of a surrogate pair, which can't be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        accepted = f"text without halves of surrogate pairs, such as its character {error.start}"
        raise place.wrong(row, text, accepted) from None


def as_number(value: object, *, typed: bool) -> float | None:
    """The value as a number; text is converted unless the format is typed."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) <= FLOAT_MAX else math.inf
    if typed or not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return None
    return float(value)


def as_class(value: object) -> int | None:
    """A value of a typed format as the number of a class, if it is whole; floats and decimals are accepted."""
    if isinstance(value, float | Decimal):
        value = int(value) if math.isfinite(value) and value == int(value) else None
    return int(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else None  # booleans are integers, too


def text_column(first: object) -> Callable[[CellLocation], Column]:
    """A column of texts, or of chats if `first`, its first value, is one."""
    return Talks if isinstance(first, list) else Words


def missing_column(name: str, there: Iterable[str], where: str, param: str) -> UserError:
    """The error for a column that `where` does not have, or has twice."""
    columns = sorted(there)
    found = "more than one column" if name in columns else "no column"
    listed = ", ".join(shown(column) for column in columns[:20]) or "none"
    return invalid(f"{where} has {found} {name!r}; it has {listed}", param)


def running_text(values: Values, param: str) -> TextSamples | Chats:
    """Texts or chats of one column; raises UserError (`invalid_data`) if it has neither."""
    if not isinstance(values, list):
        found = f"the column of {param} has {_kind(values)}; accepted: texts, or lists of messages"
        raise invalid(found, "data.input_columns")
    talks = [value for value in values if not isinstance(value, str)]
    return Chats(talks) if talks else TextSamples([value for value in values if isinstance(value, str)])


def join_inputs(columns: Mapping[str, Values], param: str) -> NDArray | TextSamples:
    """Texts of one or two columns, images (N, C, H, W) of one, or a table (N, D) float32; raises UserError if the
    columns do not fit."""
    texts = [cast(list[str], values) for values in columns.values() if isinstance(values, list)]
    if texts and (len(texts) < len(columns) or len(texts) > 2):
        kinds = ", ".join(f"{name!r}: {_kind(values)}" for name, values in list(columns.items())[:20])
        accepted = "one or two columns of texts, one of images, or columns of numbers"
        raise invalid(
            f"the columns of {param} do not fit together: {kinds}; accepted: {accepted}", "data.input_columns"
        )
    if texts:
        return TextSamples(texts[0], texts[1] if len(texts) > 1 else None)
    if any(_kind(values) == "images" for values in columns.values()):
        if len(columns) > 1:
            raise invalid(
                f"one of {len(columns)} columns of {param} has images; accepted: only that column", "data.input_columns"
            )
        return np.asarray(next(iter(columns.values())))
    return np.concatenate([as_numbers(*item) for item in columns.items()], axis=1)


def _kind(values: Values) -> str:
    if isinstance(values, list):
        return "texts"
    return "images" if values.ndim == 4 else "numbers"


def as_numbers(name: str, values: Values) -> NDArray:
    """The column called `name`, numbers (N, T) float32; raises UserError for any other."""
    if isinstance(values, list) or values.ndim != 2:
        raise invalid(f"column {name!r} has {_kind(values)}; accepted: numbers", "data.label_columns")
    return values
