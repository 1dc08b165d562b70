"""Data on this machine that a job names by path: sent ahead, so that the job names uploaded files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stillhouse.errors import BadRequest
from stillhouse.packing import pack

DATA_FIELDS = ("train", "eval")
Upload = Callable[[Path], str]
"""Sends a file and returns its id."""
Tell = Callable[[str], None]


def tell_nobody(line: str) -> None:
    """Keep quiet."""


def send_data(upload: Upload, document: Mapping[str, Any], folder: Path, tell: Tell = tell_nobody) -> dict[str, Any]:
    """The document with local data (relative to `folder`) replaced by ids of uploaded files.

    A folder is packed first, and `data.format` filled in where it is not given; `tell` gets a line about it. What is
    neither a file's id nor text is left to the service to judge. Raises `BadRequest` for what is not there.
    """
    data = document.get("data")
    if not isinstance(data, Mapping):
        return dict(document)
    sent = dict(data)
    for key in DATA_FIELDS:
        reference = data.get(key)
        if isinstance(reference, str) and not reference.startswith("file_"):
            sent |= _send(upload, folder / reference, f"data.{key}", sent, key, tell)
    return {**document, "data": sent}


def _send(upload: Upload, path: Path, param: str, data: Mapping[str, Any], key: str, tell: Tell) -> dict[str, Any]:
    """The fields of `data` that change."""
    if path.is_file():
        return {key: upload(path)}
    if not path.is_dir():
        raise BadRequest(f"{param}: there is no file {str(path)!r}, and it is no id such as file_…")
    with tempfile.TemporaryDirectory() as scratch:
        packed = pack(path, Path(scratch), param)
        if data.get("format", packed.format) != packed.format:
            found = f"{str(path)!r} is a folder for {packed.format}, and data.format is {data['format']}"
            raise BadRequest(f"{param}: {found}")
        others = f"; {packed.left_out} that are no pictures were left out" if packed.left_out else ""
        tell(f"{param}: packed {packed.files} files of {path} as {packed.format}{others}")
        return {key: upload(packed.path), "format": packed.format}
