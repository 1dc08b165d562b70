"""Job files on this machine: read, overridden, and their local data files sent ahead."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from app.cli.client import Client
from app.cli.errors import BadRequest
from app.recipe import documents
from app.recipe.key_maps import KEY_MAPS

DATA_FIELDS = ("train", "eval")


def read(path: Path, assignments: Iterable[str] = ()) -> dict[str, Any]:
    """Read a job file and apply `key.path=value` overrides. Raises `BadRequest`."""
    try:
        document = documents.parse(path.read_text(encoding="utf-8"))
        for assignment in assignments:
            document = documents.override(document, assignment)
    except (OSError, UnicodeDecodeError, documents.DocumentError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadRequest(f"{path}: {reason}") from None
    return document


def registration(
    description: dict[str, Any], *, name: str | None, checkpoint_key: str | None, key_map: Path | None
) -> dict[str, Any]:
    """What `Client.register_model` takes beside a file of weights, whose `description` is its config, or an object that
    holds it as `config`; what is not None counts more than what stands there. Raises `BadRequest`."""
    told = description if "config" in description else {"config": description}
    if key_map is not None:
        renames = key_map.name if str(key_map) in KEY_MAPS and not key_map.exists() else read(key_map)
        told = {**told, "key_map": renames}
    told = told | {key: value for key, value in (("name", name), ("checkpoint_key", checkpoint_key)) if value}
    if unknown := sorted(told.keys() - {"config", "name", "checkpoint_key", "key_map"}):
        raise BadRequest(f"{unknown[0]}: beside config stand name, checkpoint_key and key_map, and nothing else")
    return told


def send_data(client: Client, document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the document with local data files (relative to `folder`) replaced by ids of uploaded ones.

    What is neither a file's id nor text is left to the service to judge. Raises `BadRequest` for a missing file.
    """
    data = document.get("data")
    if not isinstance(data, dict):
        return document
    sent = {key: _send(client, data[key], folder, f"data.{key}") for key in DATA_FIELDS if key in data}
    return {**document, "data": {**data, **sent}}


def _send(client: Client, reference: Any, folder: Path, param: str) -> Any:
    if not isinstance(reference, str) or reference.startswith("file_"):
        return reference
    path = folder / reference
    if not path.is_file():
        raise BadRequest(f"{param}: there is no file {str(path)!r}, and it is no id such as file_…")
    return client.upload(path).id


def overrides(spec: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """The top-level fields of a spec that `key.path=value` assignments change. Raises `BadRequest`."""
    changed = spec
    try:
        for assignment in assignments:
            changed = documents.override(changed, assignment)
    except documents.DocumentError as error:
        raise BadRequest(str(error)) from None
    return {key: value for key, value in changed.items() if key not in spec or spec[key] != value}
