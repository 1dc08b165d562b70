"""Reads Apache Arrow columns: Parquet files, and data sets of Hugging Face `datasets` saved to disk.

Of a data set only the tables and their plain description are read: no code in it is run, and no path that it names is
opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.recipe.data.sources import HfData, ParquetData
from worker.data.formats.arrow_columns import read_column, read_masks, read_values
from worker.data.formats.column_readers import ColumnReader
from worker.data.formats.columns import (
    CLASS_NAME,
    CellLocation,
    Chats,
    Samples,
    TextSamples,
    is_class_name,
    missing_column,
    running_text,
)
from worker.data.formats.faults import MAX_BYTES, TABLE_RATIO, invalid, most_bytes, shown
from worker.data.formats.packs import members
from worker.limits import progress

pa.set_memory_pool(pa.system_memory_pool())  # the others reserve a gigabyte at once

STATE = "state.json"
MAX_THRIFT = 256 * 2**20
"""Most bytes of a Parquet file's metadata."""
BATCH_ROWS = 4096
ROW_BYTES = 16
"""Bytes of a row after decoding, even if a run of equal rows is stored once: 32-bit numbers, and a class."""
PIECE_ROWS = 256
"""Rows of texts read at a time, however long they are."""
BUFFER = 2**20
"""Bytes of a column that are read ahead if row groups are not read at once."""


def read_parquet(path: Path, data: ParquetData, reader: ColumnReader, param: str) -> Samples:
    """Read a Parquet file. Raises UserError (`invalid_data`) naming column, row and value."""
    names = _named(data, param)
    with _sound(param, "a valid Parquet file"):
        file = _opened(path)
        _require(names, file.schema_arrow.names, param)
        batches, taken, most = [], 0, most_bytes(path, TABLE_RATIO)
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            progress()
            taken += batch.nbytes + ROW_BYTES * len(batch)
            _limit(taken, most, param)
            batches.append(batch)
        table = pa.Table.from_batches(batches) if batches else file.schema_arrow.empty_table()
        table.validate(full=True)
    return _samples(table, data, reader, param)


def read_hf(path: Path, data: HfData, reader: ColumnReader, param: str) -> Samples:
    """Read a packed data set; `param` selects the split."""
    split = data.split if param == "data.train" else data.eval_split
    with _sound(param, "a valid data set"):
        tables = [pa.ipc.open_stream(pa.py_buffer(shard)).read_all() for shard in _shards(path, split, param)]
        names = _named(data, param)
        for table in tables:
            _require(names, table.column_names, param)
        table = pa.concat_tables([table.select(names) for table in tables])
        table.validate(full=True)
    return _samples(table, data, reader, param)


def parquet_pieces(path: Path, data: ParquetData, param: str) -> Iterator[TextSamples | Chats]:
    """The texts or chats of a Parquet file, some at a time. Raises UserError as `read_parquet` does."""
    row = 0
    with _sound(param, "a valid Parquet file"):
        file = _opened(path, buffer_size=BUFFER)
        _require(data.input_columns, file.schema_arrow.names, param)
        for batch in file.iter_batches(PIECE_ROWS, columns=data.input_columns):
            yield _piece(batch, data, param, row)
            row += len(batch)


def hf_pieces(path: Path, data: HfData, param: str, folder: Path) -> Iterator[TextSamples | Chats]:
    """The texts or chats of a packed data set, some at a time; its tables are unpacked in `folder`."""
    split, row = data.split if param == "data.train" else data.eval_split, 0
    with _sound(param, "a valid data set"), TemporaryDirectory(dir=folder) as temporary:
        for shard in _unpacked(path, split, param, Path(temporary)):
            with pa.memory_map(str(shard)) as file, pa.ipc.open_stream(file) as stream:
                _require(data.input_columns, stream.schema.names, param)
                for batch in stream:
                    for first in range(0, len(batch), PIECE_ROWS):
                        yield _piece(batch.slice(first, PIECE_ROWS), data, param, row + first)
                    row += len(batch)


def _piece(batch: pa.RecordBatch, data: ParquetData | HfData, param: str, row: int) -> TextSamples | Chats:
    """Texts or chats of the task's one input column, from row `row` on."""
    (name,) = data.input_columns
    batch.validate(full=True)
    column, place = pa.chunked_array([batch[name]]), CellLocation(param, name, row)
    values = read_column(column, place, partial(read_values, data=data))
    return running_text(values, param)


def _opened(path: Path, **more: int) -> pq.ParquetFile:
    return pq.ParquetFile(path, thrift_string_size_limit=MAX_THRIFT, thrift_container_size_limit=MAX_THRIFT, **more)


def _named(data: ParquetData | HfData, param: str) -> list[str]:
    mask = _mask_column(data, param)
    return list(dict.fromkeys([*data.source_columns, *data.label_columns, *([] if mask is None else [mask])]))


def _mask_column(data: ParquetData | HfData, param: str) -> str | None:
    return data.mask_column if data.is_evaluated(param) else None


@contextmanager
def _sound(param: str, what: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as error:
        first = str(error).partition("\n")[0][:200]
        raise invalid(f"{param} is not {what}: {first}", param) from error


def _limit(taken: int, most: int, param: str) -> None:
    if taken > most:
        raise invalid(f"the columns of {param} take more than {most} bytes; accepted: at most that for its size", param)


def _require(names: Sequence[str], there: Sequence[str], param: str) -> None:
    for name in names:
        if there.count(name) != 1:
            raise missing_column(name, there, param, param)


def _shards(path: Path, split: str | None, param: str) -> list[bytes]:
    """The Arrow files of one split, in the order of the data set's state file."""
    found = {member.path: member.content for member in members(path, MAX_BYTES, param) if _belongs(member.path)}
    return [found[place] for place in _chosen(found, split, param)]


def _unpacked(path: Path, split: str | None, param: str, folder: Path) -> list[Path]:
    """The Arrow files of one split, unpacked in `folder`; one at a time is in memory."""
    states: dict[PurePosixPath, bytes] = {}
    files: dict[PurePosixPath, Path] = {}
    for place, content in members(path, MAX_BYTES, param):
        if place.name == STATE:
            states[place] = content
        elif _belongs(place) and split in (None, place.parent.name):
            files[place] = folder / str(len(files))
            files[place].write_bytes(content)
    return [files[place] for place in _chosen({**states, **dict.fromkeys(files, b"")}, split, param)]


def _chosen(found: Mapping[PurePosixPath, bytes], split: str | None, param: str) -> list[PurePosixPath]:
    """Paths of the tables of one split, from the content of the state files in `found`."""
    states = sorted(place for place in found if place.name == STATE)
    chosen = [place for place in states if split is None or place.parent.name == split]
    if len(chosen) != 1:
        there = ", ".join(place.parent.name or "." for place in states[:20]) or "none"
        field = "data.split" if param == "data.train" else "data.eval_split"
        wanted = "single split" if split is None else f"split {split!r}"
        raise invalid(f"{param} has no {wanted}; its splits are: {there}", field)
    places = [chosen[0].parent / name for name in _file_names(found[chosen[0]])]
    for place in places:
        if place not in found:
            raise invalid(f"{param} names a file {place.name!r}, which is missing", param)
    return places


def _belongs(path: PurePosixPath) -> bool:
    return path.name == STATE or path.suffix == ".arrow"


def _file_names(state: bytes) -> list[str]:
    files = json.loads(state)["_data_files"]
    return [str(PurePosixPath(file["filename"]).name) for file in files]


def _samples(table: pa.Table, data: ParquetData | HfData, reader: ColumnReader, param: str) -> Samples:
    if not table.num_rows:
        raise invalid(f"{param} has no rows", param)
    inputs = {
        name: read_column(table[name], CellLocation(param, name), partial(reader.inputs_from_arrow, data=data))
        for name in data.source_columns
    }
    names = (
        _class_names(table.schema, data.label_columns[0], param) if reader.has_classes and data.label_columns else None
    )
    labels = {
        name: read_column(table[name], CellLocation(param, name), partial(reader.labels_from_arrow, data=data))
        for name in data.label_columns
    }
    found = reader.assemble(inputs, labels, param, names)
    if (mask := _mask_column(data, param)) is None:
        return found
    read = partial(read_masks, data=data)
    return found._replace(masks=np.asarray(read_column(table[mask], CellLocation(param, mask), read)))


def _class_names(schema: pa.Schema, column: str, param: str) -> list[str] | None:
    """Names of a `ClassLabel`, or of one in a list, from the description that `datasets` writes into its tables; none
    if there are none."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = _listed_feature(features[column])["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list):
        return None
    for number, name in enumerate(names):
        if not is_class_name(name):
            raise invalid(f"{param} names class {number} {shown(name)}; accepted: {CLASS_NAME}", param)
    return names


def _listed_feature(feature: Any) -> Any:
    """The feature of a list's elements, in any of the forms that `datasets` has used; any other feature unchanged."""
    if isinstance(feature, list):
        return feature[0] if len(feature) == 1 else {}
    return feature.get("feature", feature)
