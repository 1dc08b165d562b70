"""One column of an Arrow table as texts, chats, images or numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from app.recipe.data.sources import HfData, ParquetData
from worker.data.archive import NDArray
from worker.data.formats.columns import CellLocation, Labels, Talks, Values
from worker.data.formats.faults import invalid
from worker.data.formats.pictures import LARGEST, EncodedImages, decode
from worker.errors import UserError

HALF = 128
"""Least value of a bright pixel."""
ArrowReader = Callable[[pa.ChunkedArray, CellLocation], Values]


def read_column(column: pa.ChunkedArray, place: CellLocation, read: ArrowReader) -> Values:
    """One column read by `read`, which gets it without null values; raises UserError (`invalid_data`) if that fails."""
    try:
        return read(_plain(column, place), place)
    except (UserError, pa.ArrowMemoryError):
        raise
    except (pa.ArrowException, ValueError, TypeError, KeyError, ArithmeticError) as error:
        first = str(error).partition("\n")[0][:200]
        found = f"column {place.column!r} of {place.param} has values of type {column.type} that can't be read: {first}"
        raise invalid(found, place.param) from error


def read_values(column: pa.ChunkedArray, place: CellLocation, data: ParquetData | HfData) -> Values:
    """Texts, chats, images (N, C, H, W) uint8, or numbers (N, T) float32, by the type of the column."""
    kind = column.type
    if _is_text(kind):
        values: list[str] = column.to_pylist()
        return values
    if pa.types.is_nested(kind) and _holds_messages(kind):
        talks = Talks(place)
        for value in column.to_pylist():
            talks.add(value)
        return talks.whole()
    if _holds_bytes(kind):
        return decode(_encoded(column, place), data, place.param)
    if _is_numeric(kind):
        return _numbers(column, place)
    raise _unreadable(kind, place, "text, numbers, lists of numbers, or bytes of images")


def read_classes(column: pa.ChunkedArray, place: CellLocation) -> Values:
    """Classes (N,) int64, or names of classes."""
    kind = column.type
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return np.asarray(column.cast(pa.int64()).to_numpy())
    if not (_is_text(kind) or _is_number(kind)):
        raise _unreadable(kind, place, "whole numbers or text")
    found = Labels(place, typed=True)
    for value in column.to_pylist():
        found.add(value)
    return found.whole()


def read_masks(column: pa.ChunkedArray, place: CellLocation, data: ParquetData | HfData) -> Values:
    """Masks (N, H, W) bool of encoded images, true where they are brighter than half; resized as the images are."""
    if not _holds_bytes(column.type):
        raise _unreadable(column.type, place, "bytes of images")
    grey = decode(_encoded(column, place), data.model_copy(update={"channels": 1}), place.param)
    return grey[:, 0] >= HALF


def _plain(column: pa.ChunkedArray, place: CellLocation) -> pa.ChunkedArray:
    """The column without dictionary encoding or extension type; raises UserError for null values."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    _refuse_nulls(column, place)
    return column


def _unreadable(kind: pa.DataType, place: CellLocation, accepted: str) -> UserError:
    found = f"column {place.column!r} of {place.param} has values of type {kind}"
    return invalid(f"{found}; accepted: {accepted}", place.param)


def _refuse_nulls(column: pa.ChunkedArray, place: CellLocation) -> None:
    if column.null_count:
        row = pc.index(column.is_null(), pa.scalar(True)).as_py()
        raise place.wrong(row, None, "a value in every row")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return bool(plain or pa.types.is_decimal(kind))


def _holds_messages(kind: pa.DataType) -> bool:
    element = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    return element is not None and pa.types.is_struct(element) and element.get_field_index("content") >= 0


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _encoded(column: pa.ChunkedArray, place: CellLocation) -> Iterator[EncodedImages]:
    for row, value in enumerate(value for chunk in column.chunks for value in chunk):
        content = value["bytes"] if isinstance(value, pa.StructScalar) else value
        if not content.is_valid:
            raise place.wrong(row, None, "the bytes of an image")
        buffer = content.as_buffer()
        if buffer.size > LARGEST:
            raise place.wrong(row, f"{buffer.size} bytes", f"at most {LARGEST} bytes")
        yield EncodedImages(f"row {row}", buffer)


def _is_numeric(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return _is_number(kind.value_type if lists else kind)


def _numbers(column: pa.ChunkedArray, place: CellLocation) -> NDArray:
    """Numbers (N, 1), or lists of one length (N, T), as float32."""
    width = 1
    if not _is_number(column.type):
        column, width = _flattened(column, place)
    values: NDArray = column.cast(pa.float64(), safe=False).to_numpy()
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, and are refused below
        numbers = values.astype(np.float32).reshape(-1, width)
    finite = np.isfinite(numbers).all(axis=1)
    if not finite.all():
        row = int(finite.argmin())
        raise place.wrong(row, values.reshape(-1, width)[row].tolist(), "finite 32-bit numbers")
    return numbers


def _flattened(column: pa.ChunkedArray, place: CellLocation) -> tuple[pa.ChunkedArray, int]:
    lengths = pc.list_value_length(column).to_numpy()
    wrong = lengths != lengths[0]
    if wrong.any() or not lengths[0]:
        row = int(wrong.argmax())
        raise place.wrong(row, column[row].as_py(), f"{lengths[0] or 'some'} numbers, as in row 0")
    flat = pc.list_flatten(column)
    if flat.null_count:
        row = pc.index(flat.is_null(), pa.scalar(True)).as_py() // int(lengths[0])
        raise place.wrong(row, column[row].as_py(), "a number in every position")
    return flat, int(lengths[0])
