"""Why a peer can't be run here."""

from __future__ import annotations

import sys
from pathlib import Path

MISSING = "missing"
"""Folder of the environment in which a failed installation leaves its last line, under the package's name."""


def why(error: Exception) -> str:
    """The first line of what an error says; of a missing package, what kept it from being installed."""
    said = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        note = Path(sys.prefix) / MISSING / error.name.partition(".")[0].replace("_", "-")
        return f"{said}; {note.read_text().strip()}" if note.is_file() else said
    return said
