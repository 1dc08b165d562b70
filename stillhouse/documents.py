"""Reading and overriding of job files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from app.recipe import documents
from app.recipe.teachers.key_maps import KEY_MAPS
from stillhouse.errors import BadRequest


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
    """Arguments of `Client.register_model` for a file of weights. `description` is its config, or an object that
    has it as `config`; arguments that are not None take precedence. Raises `BadRequest`."""
    given = description if "config" in description else {"config": description}
    if key_map is not None:
        renames = key_map.name if str(key_map) in KEY_MAPS and not key_map.exists() else read(key_map)
        given = {**given, "key_map": renames}
    given = given | {key: value for key, value in (("name", name), ("checkpoint_key", checkpoint_key)) if value}
    if unknown := sorted(given.keys() - {"config", "name", "checkpoint_key", "key_map"}):
        raise BadRequest(f"{unknown[0]}: is not a known key; accepted: config, name, checkpoint_key and key_map")
    return given


def diagnosis(kinds: Iterable[str], train: str, held_out: str | None, assignments: Iterable[str]) -> dict[str, Any]:
    """The document of a request for diagnostics of these kinds on data files, with `key.path=value` overrides. Raises
    `BadRequest`."""
    data = {"train": train, **({"eval": held_out} if held_out is not None else {})}
    wanted = {"data": data, "evaluation": {"diagnostics": [{"kind": kind} for kind in kinds]}}
    return wanted | overrides(wanted, assignments)


def overrides(spec: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """The top-level fields of a spec that `key.path=value` assignments change. Raises `BadRequest`."""
    changed = spec
    try:
        for assignment in assignments:
            changed = documents.override(changed, assignment)
    except documents.DocumentError as error:
        raise BadRequest(str(error)) from None
    return {key: value for key, value in changed.items() if key not in spec or spec[key] != value}
