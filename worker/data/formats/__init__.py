"""Readers of data sets that strangers made: from one file to plain columns, checked on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.recipe.data import CsvData, Data, HfData, ImageData, ImageFolderData, JsonlData, ParquetData
from app.recipe.task import Task
from worker.data.formats.columns import Samples
from worker.data.formats.folder import read_folder
from worker.data.formats.lines import read_csv, read_jsonl
from worker.data.formats.npz import read_npz


def _arrow(path: Path, data: ParquetData | HfData, task: Task, param: str) -> Samples:
    from worker.data.formats.arrow import read_hf, read_parquet  # pyarrow takes a tenth of a second to import

    return read_hf(path, data, task, param) if isinstance(data, HfData) else read_parquet(path, data, task, param)


_READERS: dict[type[Data], Callable[[Path, Any, Task, str], Samples]] = {
    ImageData: read_npz,
    ParquetData: _arrow,
    CsvData: read_csv,
    JsonlData: read_jsonl,
    ImageFolderData: read_folder,
    HfData: _arrow,
}


def read_samples(path: Path, data: Data, task: Task, param: str) -> Samples:
    """All samples of a file; `param` is the field that names it, `data.train` or `data.eval`.

    Raises UserError (`invalid_data`) naming the field, the row or index and the value at fault.
    """
    return _READERS[type(data)](path, data.at(param), task, param)
