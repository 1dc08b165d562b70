"""Small files of every format, and the errors for those that can't be used."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from app.recipe.data.sources import AnyData, Data
from app.recipe.tasks import TaskName
from worker.data.formats import read_samples
from worker.data.formats.column_readers import ColumnReader
from worker.data.formats.columns import Samples
from worker.errors import UserError
from worker.tasks import task_for
from worker.tasks.samples import SampleTask

PARAM = "data.train"


def options(kind: str, **more: Any) -> Data:
    found: Data = TypeAdapter(AnyData).validate_python({"train": "f", "format": kind, **more})
    return found


def picture(shade: int = 0, size: tuple[int, int] = (6, 5), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """An encoded image, its pixels all of one shade; `size` is height and width."""
    color: Any = shade if mode in ("L", "1", "I;16", "P") else (shade,) * len(mode)
    return encoded(Image.new(mode, (size[1], size[0]), color), kind)


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def packed(path: Path, files: Mapping[str, bytes]) -> Path:
    """The files in an archive of the kind that `path` is named after."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def columns_of(name: str) -> ColumnReader:
    """How the task of this name reads columns."""
    task = task_for(name)
    assert isinstance(task, SampleTask)
    return task.columns


def refusal(path: Path, data: Data, task: TaskName, param: str = PARAM) -> UserError:
    """The error for a file that can't be read."""
    with pytest.raises(UserError) as caught:
        read_samples(path, data, columns_of(task), param)
    assert caught.value.code == "invalid_data"
    return caught.value


def array(samples: Samples) -> np.ndarray[Any, np.dtype[Any]]:
    """The samples, which must be images or a table."""
    assert isinstance(samples.inputs, np.ndarray)
    return samples.inputs
