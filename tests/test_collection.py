"""Ids of tests: short, printable, and the same in every process at every time; parallel processes compare them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LONGEST_PARAMETERS = 80
"""Characters between the brackets of an id."""


def collected(hash_seed: int) -> list[str]:
    """Ids of all tests, in the order in which another process collects them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return [line for line in done.stdout.split("\n") if line.startswith("tests/")]


def test_two_processes_collect_the_same_short_printable_ids_at_two_times() -> None:
    """Collecting takes seconds, so the clock has moved on when the second process begins."""
    first, second = collected(1), collected(2)
    assert len(first) == len(set(first)) > 1000
    assert first == second
    parameters = [test.partition("[")[2] for test in first]
    assert not [each for each in parameters if len(each) > LONGEST_PARAMETERS or not each.isascii()]
    assert not [each for each in parameters if not each.isprintable() or "\\x" in each]
