"""Job files on this machine: read and overridden."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from app.cli.errors import BadRequest
from app.recipe import documents


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


def overrides(spec: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """The top-level fields of a spec that `key.path=value` assignments change. Raises `BadRequest`."""
    changed = spec
    try:
        for assignment in assignments:
            changed = documents.override(changed, assignment)
    except documents.DocumentError as error:
        raise BadRequest(str(error)) from None
    return {key: value for key, value in changed.items() if key not in spec or spec[key] != value}
