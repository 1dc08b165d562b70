"""Local data that a job names by path: it is uploaded, and replaced by the ids of the uploaded files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.errors import BadRequest
from stillhouse.packing import pack

DATA_FIELDS = ("train", "eval", "corpus", "label_texts")
DIAGNOSTIC = "evaluation.diagnostics[{}].data"
"""Path of the field of a diagnostic with a file."""
Notify = Callable[[str], None]
"""Called with a line for people about a folder that was packed."""


def ignore(line: str) -> None:
    """Ignore the line."""


@dataclass
class LocalData:
    """The local data of a job document."""

    document: Mapping[str, Any]
    files: dict[str, Path] = field(default_factory=dict)
    """Files to upload, by the field of `data` that names each, or by the path of that of a diagnostic."""
    format: str | None = None
    """Format of packed folders, for `data.format`; None if no folder was packed."""

    def replaced(self, ids: Mapping[str, str]) -> dict[str, Any]:
        """The document, with the ids of the uploaded files by field."""
        if not ids:
            return dict(self.document)
        formats = {} if self.format is None else {"format": self.format}
        named = {key: ids[key] for key in DATA_FIELDS if key in ids}
        replaced = {**self.document, "data": {**self.document["data"], **named, **formats}}
        diagnostics = [
            {**one, "data": ids[path]} if (path := DIAGNOSTIC.format(index)) in ids else one
            for index, one in enumerate(_diagnostics(self.document))
        ]
        if diagnostics:
            replaced["evaluation"] = {**self.document["evaluation"], "diagnostics": diagnostics}
        return replaced


def find(document: Mapping[str, Any], folder: Path, scratch: Path, notify: Notify = ignore) -> LocalData:
    """Find the data that a job names by paths relative to `folder`; a folder is packed into `scratch`.

    Anything but a path is left for the service to check. Raises `BadRequest`, naming the field, for a path that does
    not exist, and for a folder of another format than `data.format`.
    """
    found = LocalData(document)
    data = document.get("data")
    if not isinstance(data, Mapping):
        return found
    references = {key: data.get(key) for key in DATA_FIELDS}
    for index, one in enumerate(_diagnostics(document)):
        references[DIAGNOSTIC.format(index)] = one.get("data") if isinstance(one, Mapping) else None
    for key, reference in references.items():
        if isinstance(reference, str) and not reference.startswith("file_"):
            found.files[key] = _file(found, folder / reference, key, scratch, notify)
    return found


def _diagnostics(document: Mapping[str, Any]) -> list[Any]:
    evaluation = document.get("evaluation")
    found = evaluation.get("diagnostics") if isinstance(evaluation, Mapping) else None
    return found if isinstance(found, list) else []


def _file(found: LocalData, path: Path, key: str, scratch: Path, notify: Notify) -> Path:
    if path.is_file():
        return path
    param = f"data.{key}" if key in DATA_FIELDS else key
    if not path.is_dir():
        raise BadRequest(f"{param}: there is no file {str(path)!r}, and it is not an id such as file_…")
    (scratch / key).mkdir()
    packed = pack(path, scratch / key, param)
    wanted = found.format or found.document["data"].get("format", packed.format)
    if wanted != packed.format:
        raise BadRequest(f"{param}: {str(path)!r} is a folder for {packed.format}, and data.format is {wanted}")
    found.format = packed.format
    others = f"; {packed.left_out} files that are not images were skipped" if packed.left_out else ""
    notify(f"{param}: packed {packed.files} files of {path} as {packed.format}{others}")
    return packed.path
