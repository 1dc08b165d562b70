"""`stillhouse up` as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers.output import all_of, first_line

STILLHOUSE = (sys.executable, "-c", "from stillhouse.cli.main import app; app()")


def environment(data_dir: Path, **extra: str) -> dict[str, str]:
    """This process' environment, for a machine on which only a data folder is set."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STILLHOUSE_")}
    return clean | {"STILLHOUSE_DATA_DIR": str(data_dir)} | extra


@contextmanager
def running(env: Mapping[str, str], *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A service on a free port, and the line that it said when it was ready."""
    command = (*STILLHOUSE, "up", "--port", "0", "--json", *words)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        yield process, json.loads(_first_line(process))
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _first_line(process: subprocess.Popen[str]) -> str:
    """Raises AssertionError with what it wrote to stderr when it does not become ready."""
    try:
        return first_line(process.stdout)
    except AssertionError as error:
        process.kill()
        raise AssertionError(f"{error}\n{all_of(process)[1]}") from None
