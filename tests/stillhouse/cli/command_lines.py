"""Command lines, and jobs that they submit."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result

Run = Callable[..., Result]


def submitted(run: Run, job_file: Path, *words: str) -> dict[str, Any]:
    result = run("submit", job_file, "--json", *words)
    assert result.exit_code == 0, result.output
    job: dict[str, Any] = json.loads(result.stdout)
    return job


def in_background(run: Run, *words: str) -> Callable[[], Result]:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run(*words)))
    thread.start()

    def result() -> Result:
        thread.join(20)
        return results[0]

    return result
