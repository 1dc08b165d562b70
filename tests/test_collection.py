"""Ids of tests: short, printable, and the same in every process at every time; parallel processes compare them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LONGEST_PARAMETERS = 80
"""Characters between the brackets of an id."""


def collected_elsewhere() -> list[str]:
    """Ids of all tests, in the order in which another process with a hash seed of its own collects them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return [line for line in done.stdout.split("\n") if line.startswith("tests/")]


def file_of(test: str) -> str:
    return test.partition("::")[0]


@pytest.mark.long
def test_two_processes_collect_the_same_short_printable_ids_at_two_times(request: pytest.FixtureRequest) -> None:
    """This process has collected before, and perhaps only some of the tests."""
    own, everything = [item.nodeid for item in request.session.items], collected_elsewhere()
    assert len(everything) == len(set(everything)) > 1000
    chosen = set(own)
    assert sorted(own, key=file_of) == sorted((test for test in everything if test in chosen), key=file_of)
    parameters = [test.partition("[")[2] for test in everything]
    assert not [each for each in parameters if len(each) > LONGEST_PARAMETERS or not each.isascii()]
    assert not [each for each in parameters if not each.isprintable() or "\\x" in each]
