"""Who tells how a trainer without a supervisor died."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.output import all_of, first_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the witness needs Linux")
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from worker.limits import Subject, noted_in, reading
from worker.trainer.witness import continue_in_child
out = Path(sys.argv[1])
first = os.getpid()
continue_in_child(out)
assert os.getppid() == first
with noted_in(out):
    {what}
"""
READING = "with reading(Subject('data.train', 'invalid_data', 'data.train')): {what}"


def begin(out: Path, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(what=what), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("what", "status"), [("sys.exit(0)", 0), ("sys.exit(130)", 130), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_its_status_is_the_childs(tmp_path: Path, what: str, status: int) -> None:
    child = begin(tmp_path, what)
    _, stderr = all_of(child)
    assert child.returncode == status
    assert "failed" not in stderr


def test_a_file_that_ends_the_child_is_named(tmp_path: Path) -> None:
    child = begin(tmp_path, READING.format(what="os.abort()"))
    _, stderr = all_of(child)
    assert child.returncode == 1
    assert "failed (user, invalid_data): data.train ended the process that read it (SIGABRT)" in stderr


def test_a_signal_to_it_reaches_the_child(tmp_path: Path) -> None:
    heard = "signal.signal(signal.SIGINT, lambda *_: sys.exit(7)); print('ready', flush=True); time.sleep(600)"
    child = begin(tmp_path, heard)
    assert first_line(child.stdout) == "ready\n"
    child.send_signal(signal.SIGINT)
    all_of(child)
    assert child.returncode == 7
