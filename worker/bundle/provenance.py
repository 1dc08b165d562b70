"""Provenance of a student: names, digests and licences of data and models, for its report and its card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from app.recipe.documents import DocumentError, parse
from app.recipe.students.hugging_face import CARD, MAX_CONFIG_BYTES
from app.recipe.teachers.teacher import Origin
from worker.protocol import Assignment, InputSource
from worker.students.weights import weight_files

RECIPE = "recipe.json"
"""File beside the weights of an earlier job's student, with its job."""
_HEADER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
LICENCE_CHARACTERS = 64


def provenance(assignment: Assignment, folder: Path) -> dict[str, dict[str, Any]]:
    """`reference`, `name` (or null) and `sha256` of every input staged in `folder`, by the path of its field.

    The digest of a model is that of its weights (with several files, of their digests in order). Models also have
    `licence`, or null if it is unknown. Reads every model's weights, and data without a digest in the assignment.
    """
    job, sources = assignment.spec, assignment.sources
    inputs = {reference: folder / path for reference, path in assignment.inputs.items()}
    found = {path: _of_data(reference, inputs[reference], sources) for path, reference in job.files.items()}
    return found | {path: _of_model(origin, inputs[origin.reference], sources) for path, origin in job.origins.items()}


def _of_data(reference: str, path: Path, sources: Mapping[str, InputSource]) -> dict[str, Any]:
    source = sources.get(reference, InputSource())
    return {"reference": reference, "name": source.name, "sha256": source.sha256 or _digest(path)}


def _of_model(origin: Origin, folder: Path, sources: Mapping[str, InputSource]) -> dict[str, Any]:
    name = sources.get(origin.reference, InputSource()).name or origin.hub
    digests = [_digest(path) for path in weight_files(folder)]
    whole = digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()
    return {"reference": origin.reference, "name": name, "sha256": whole, "licence": licence_of(folder)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def licence_of(folder: Path) -> str | None:
    """Licence in the header of a model's card, or in the job of an earlier job's student."""
    if (folder / RECIPE).is_file():
        card = _json(folder / RECIPE).get("card")
        return _plain(card.get("license")) if isinstance(card, dict) else None
    header = _header(folder / CARD)
    licence = header.get("license")
    named = header.get("license_name") if licence == "other" else licence
    return _plain(named or licence)


def _plain(value: object) -> str | None:
    """A short string, or a list of them as one line; none if it is too long or not printable."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    line = " ".join(texts)
    return line if line.isprintable() and 0 < len(line) <= LICENCE_CHARACTERS else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _header(path: Path) -> dict[str, Any]:
    """The YAML header of a card; empty if there is none that can be read."""
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        return {}
    found = _HEADER.match(path.read_text(encoding="utf-8", errors="replace"))
    try:
        return parse(found[1]) if found else {}
    except (DocumentError, RecursionError):
        return {}
