"""Reads rows of text: CSV and JSON lines, plain or packed by gzip."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, cast

from app.recipe.data.sources import CsvData, JsonlData, Table
from worker.data.formats.column_readers import ColumnReader
from worker.data.formats.columns import (
    CellLocation,
    Chats,
    Labels,
    Samples,
    TextSamples,
    in_runs,
    missing_column,
    running_text,
    text_column,
)
from worker.data.formats.faults import MAX_BYTES, invalid, shown
from worker.limits import progress

MAX_TEXT = 2**40
"""Most characters of an unpacked file that is read piece by piece."""
MAX_LINE = 16 * 2**20
"""Characters of one line, and of one value."""

Row = Sequence[object]


def read_csv(path: Path, data: CsvData, reader: ColumnReader, param: str) -> Samples:
    """Read `path` as CSV. Raises UserError (`invalid_data`) naming row, column and value."""
    return _collect(_rows_of_csv(path, data, param, MAX_BYTES), data, reader, param, typed=False)


def read_jsonl(path: Path, data: JsonlData, reader: ColumnReader, param: str) -> Samples:
    """Read `path` as JSON lines. Raises UserError (`invalid_data`) naming row, column and value."""
    return _collect(_rows_of_jsonl(path, data, param, MAX_BYTES), data, reader, param, typed=True)


def csv_pieces(path: Path, data: CsvData, param: str) -> Iterator[TextSamples | Chats]:
    """The texts of a CSV file, some at a time. Raises UserError as `read_csv` does."""
    return _pieces(_rows_of_csv(path, data, param, MAX_TEXT), data, param, typed=False)


def jsonl_pieces(path: Path, data: JsonlData, param: str) -> Iterator[TextSamples | Chats]:
    """The texts or chats of a file of JSON lines, some at a time. Raises UserError as `read_jsonl` does."""
    return _pieces(_rows_of_jsonl(path, data, param, MAX_TEXT), data, param, typed=True)


def _rows_of_csv(path: Path, data: CsvData, param: str, most: int) -> Iterator[Row]:
    with _opened(path, param, most, ending="") as lines:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if data.quoted else csv.QUOTE_NONE
        csv.field_size_limit(MAX_LINE)  # for the whole process, which reads no other CSV; the default is 131,072
        reader = csv.reader(lines, delimiter=data.delimiter, quoting=quoting, strict=True)
        header = next(reader, [])
        places = [_position(name, header, param) for name in (*data.source_columns, *data.label_columns)]
        yield from _csv_rows(reader, len(header), places, param)


def _rows_of_jsonl(path: Path, data: JsonlData, param: str, most: int) -> Iterator[Row]:
    with _opened(path, param, most) as lines:
        yield from _json_rows(lines, (*data.source_columns, *data.label_columns), param)


@contextmanager
def _opened(path: Path, param: str, most: int, ending: str = "\n") -> Iterator[Iterator[str]]:
    """Its lines; with an empty `ending` a carriage return alone also ends a line."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            yield _lines(cast(IO[bytes], stream), param, most, ending)
    except UnicodeDecodeError as error:
        raise invalid(f"{param} is not UTF-8 text: {error.reason}", param) from error
    except csv.Error as error:
        raise invalid(f"{param} is not valid CSV: {error}", param) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise invalid(f"{param} is not a valid gzip file", param) from error


def _lines(stream: IO[bytes], param: str, most: int, ending: str) -> Iterator[str]:
    taken = 0
    text = io.TextIOWrapper(stream, "utf-8-sig", newline=ending)
    while line := text.readline(MAX_LINE + 1):
        progress()
        taken += len(line)
        if len(line) > MAX_LINE:
            raise invalid(f"{param} has a line of more than {MAX_LINE} characters", param)
        if taken > most:
            raise invalid(f"{param} unpacks to more than {most} characters", param)
        yield line


def _position(name: str, header: list[str], param: str) -> int:
    if header.count(name) != 1:
        raise missing_column(name, header, param, param)
    return header.index(name)


def _csv_rows(rows: Iterable[list[str]], width: int, places: list[int], param: str) -> Iterator[Row]:
    for index, row in enumerate(row for row in rows if row):  # an empty line is no row
        if len(row) != width:
            raise invalid(f"row {index} of {param} has {len(row)} values; accepted: {width}, as in its header", param)
        yield [row[place] for place in places]


def _json_rows(lines: Iterable[str], names: Sequence[str], param: str) -> Iterator[Row]:
    for index, line in enumerate(line for line in lines if not line.isspace()):
        try:
            found = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise invalid(f"row {index} of {param} is not JSON: {str(error)[:100]}", param) from error
        if not isinstance(found, dict):
            raise invalid(f"row {index} of {param} is {shown(found)}; accepted: an object", param)
        absent = [name for name in names if name not in found]
        if absent:
            raise missing_column(absent[0], found, f"row {index} of {param}", param)
        yield [found[name] for name in names]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _pieces(rows: Iterator[Row], data: Table, param: str, *, typed: bool) -> Iterator[TextSamples | Chats]:
    """Texts or chats of the task's one input column."""
    kind, row = None, 0
    for run in in_runs((value for (value,) in rows), _extent):
        kind = kind or text_column(run[0])
        column = kind(CellLocation(param, data.input_columns[0], row))
        for value in run:
            column.add(value)
        yield running_text(column.whole(), param)
        row += len(run)


def _extent(value: object) -> int:
    """Approximate number of characters of a value."""
    return len(value) if isinstance(value, str) else len(repr(value))


def _collect(rows: Iterator[Row], data: Table, reader: ColumnReader, param: str, *, typed: bool) -> Samples:
    first = next(rows, None)
    if first is None:
        raise invalid(f"{param} has no rows", param)
    names = [*data.source_columns, *data.label_columns]
    inputs = zip(first, data.source_columns, strict=False)
    columns = [
        *(reader.input_column(value, CellLocation(param, name), typed=typed) for value, name in inputs),
        *(reader.label_column(CellLocation(param, name), typed=typed) for name in data.label_columns),
    ]
    for row in chain([first], rows):
        for column, value in zip(columns, row, strict=True):
            column.add(value)
    wholes = [(name, column.whole()) for name, column in zip(names, columns, strict=True)]
    split = len(data.source_columns)
    notes = tuple(note for column in columns if isinstance(column, Labels) for note in column.notes)
    found = reader.assemble(dict(wholes[:split]), dict(wholes[split:]), param)
    return found._replace(notes=(*found.notes, *notes))
