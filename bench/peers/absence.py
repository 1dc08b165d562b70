"""Reasons why a peer is not available."""

from __future__ import annotations

import sys
from pathlib import Path

MISSING = "missing"
"""Folder of the environment with the last line of each failed installation, under the package's name."""


def why(error: Exception) -> str:
    """The first line of an error's message; for a missing package, the reason why it was not installed."""
    message = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        note = Path(sys.prefix) / MISSING / error.name.partition(".")[0].replace("_", "-")
        return f"{message}; {note.read_text().strip()}" if note.is_file() else message
    return message
