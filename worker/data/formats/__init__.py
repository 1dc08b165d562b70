"""Readers of untrusted data sets: from one file to checked columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app.recipe.data.sources import CsvData, Data, HfData, ImageData, ImageFolderData, JsonlData, ParquetData
from worker.data.formats.column_readers import ColumnReader
from worker.data.formats.columns import Chats, Samples, TextSamples
from worker.data.formats.folder import read_folder
from worker.data.formats.lines import csv_pieces, jsonl_pieces, read_csv, read_jsonl
from worker.data.formats.npz import read_npz


def _arrow(path: Path, data: ParquetData | HfData, reader: ColumnReader, param: str) -> Samples:
    from worker.data.formats.arrow import read_hf, read_parquet  # pyarrow takes a tenth of a second to import

    return read_hf(path, data, reader, param) if isinstance(data, HfData) else read_parquet(path, data, reader, param)


def _arrow_pieces(path: Path, data: ParquetData | HfData, param: str, folder: Path) -> Iterator[TextSamples | Chats]:
    from worker.data.formats.arrow import hf_pieces, parquet_pieces

    return hf_pieces(path, data, param, folder) if isinstance(data, HfData) else parquet_pieces(path, data, param)


_READERS: dict[type[Data], Callable[[Path, Any, ColumnReader, str], Samples]] = {
    ImageData: read_npz,
    ParquetData: _arrow,
    CsvData: read_csv,
    JsonlData: read_jsonl,
    ImageFolderData: read_folder,
    HfData: _arrow,
}


def read_samples(path: Path, data: Data, reader: ColumnReader, param: str) -> Samples:
    """All samples of a file, with labels as `reader` returns them; `param` is the field that names it, `data.train` or
    `data.eval`.

    Raises UserError (`invalid_data`) naming the field, the row or index and the value at fault.
    """
    settings = data.at(param)
    return _READERS[type(data)](path, settings, reader.for_data(settings), param)


def read_pieces(path: Path, data: Data, param: str, folder: Path) -> Iterator[TextSamples | Chats]:
    """All texts or chats of a file in their order, some at a time, so that memory does not grow with the file; files
    are unpacked in `folder`. Raises UserError as `read_samples` does."""
    settings = data.at(param)
    if isinstance(settings, JsonlData):
        return jsonl_pieces(path, settings, param)
    if isinstance(settings, CsvData):
        return csv_pieces(path, settings, param)
    assert isinstance(settings, ParquetData | HfData)  # the contract refuses other formats
    return _arrow_pieces(path, settings, param, folder)
