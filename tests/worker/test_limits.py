"""Bounds on reading a user's file."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from worker import limits
from worker.errors import CapacityError, SystemFault, UserError
from worker.limits import Subject, memory_limit, note_of, noted_in, progress, reading

FILE = Subject("the tokenizer of teacher", "invalid_teacher", "teacher")
linux = pytest.mark.skipif(sys.platform != "linux", reason="bounds on memory need Linux")
SHORT = 0.2
DYING = """
import sys, time
from pathlib import Path
from worker import limits
from worker.limits import Subject, noted_in, reading
limits.GRACE = 0.2
FILE = Subject("the tokenizer of teacher", "invalid_teacher", "teacher")
with noted_in(Path(sys.argv[1])), reading(FILE, seconds=0.2):
    {what}
"""


def soft_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def allocate(size: int) -> None:
    """Map this much new memory: an allocator could take it from what the process has mapped already and has free."""
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()


def go_on_for_ever(swallow: int) -> None:
    """Until it was interrupted once more than it swallows."""
    while True:
        try:
            time.sleep(30)
        except UserError:
            swallow -= 1
            if swallow < 0:
                raise


def test_what_reads_within_bounds_leaves_no_trace(tmp_path: Path) -> None:
    before = soft_limit()
    with noted_in(tmp_path):
        with reading(FILE), reading(Subject("a part", "invalid_data", "data.train")):
            progress()
        assert note_of(tmp_path, os.getpid()) is None
    assert soft_limit() == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert not list(tmp_path.iterdir())


@linux
def test_memory_beyond_the_limit_is_refused_at_once_and_is_the_files_fault() -> None:
    before = soft_limit()
    with pytest.raises(UserError) as caught, reading(FILE, 64 << 20):
        allocate(512 << 20)
    error = caught.value
    assert (error.code, error.param) == ("invalid_teacher", "teacher")
    assert f"the tokenizer of teacher takes more than {64 << 20} bytes" in error.message
    assert soft_limit() == before


@linux
def test_a_machine_with_less_memory_than_the_file_may_take_is_at_fault_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "available_bytes", lambda: limits.RESERVE + (300 << 20))
    with pytest.raises(CapacityError) as caught, reading(FILE, 8 << 30):
        allocate(1 << 30)
    assert (caught.value.code, caught.value.param) == ("out_of_memory", "teacher")


@linux
def test_an_inner_section_has_no_more_than_the_outer_one() -> None:
    inner = Subject("an inner part", "invalid_data", "data.train")
    with pytest.raises(UserError, match=inner.name), reading(FILE, 64 << 20), reading(inner, 8 << 30):
        allocate(512 << 20)


def test_python_code_that_does_not_end_is_interrupted() -> None:
    with pytest.raises(UserError) as caught, reading(FILE, seconds=SHORT):
        go_on_for_ever(swallow=0)
    assert caught.value.message == "the tokenizer of teacher takes longer than 0.2 s to process"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_interruption_that_is_swallowed_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REARM", 0.05)
    with pytest.raises(UserError), reading(FILE, seconds=SHORT):
        go_on_for_ever(swallow=2)


def test_progress_lets_the_time_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REARM", 0.0)
    with reading(FILE, seconds=1000):
        signal.setitimer(signal.ITIMER_REAL, 5)
        progress()
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 5


class PanicException(BaseException):
    """Named as that of native code in Rust, which has no importable class."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PanicException("index out of bounds\nand more"), "can't be processed by its library: index out of bounds"),
        (RecursionError("x"), "nests too deeply to be read"),
        (KeyError("a"), "can't be read: 'a'"),
        (FileNotFoundError(2, "No such file or directory", "/scratch/x"), "can't be read: No such file or directory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "takes more than"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "takes more than"),
        (MemoryError(), "takes more than"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_a_reader_raises_is_the_files_fault(error: BaseException, told: str) -> None:
    with pytest.raises(UserError) as caught, reading(FILE):
        raise error
    assert told in caught.value.message
    assert "/scratch" not in caught.value.message


@pytest.mark.parametrize(
    "error", [SystemFault("bad_checkpoint", "x"), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_what_is_not_the_files_fault_stays_what_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, reading(FILE):
        raise error
    assert caught.value is error


def died(folder: Path, what: str) -> tuple[int, Any]:
    """Exit status of a process that did this while reading, and what its note makes of that."""
    child = subprocess.Popen([sys.executable, "-c", DYING.format(what=what), str(folder)], stderr=subprocess.DEVNULL)
    status = child.wait()
    note = note_of(folder, child.pid)
    assert note is not None
    return status, note.explain(status)


@linux
def test_native_code_that_does_not_return_is_ended_and_explained(tmp_path: Path) -> None:
    status, told = died(tmp_path, "sum(range(10**12))")
    assert status == limits.TIMED_OUT
    assert (told.fault, told.code, told.param) == ("user", "invalid_teacher", "teacher")
    assert told.message == "the tokenizer of teacher takes longer than 0.2 s to process"


@linux
def test_a_crash_while_reading_is_explained_and_a_kill_is_not(tmp_path: Path) -> None:
    _, told = died(tmp_path, "import os; os.abort()")
    assert (told.fault, told.code) == ("user", "invalid_teacher")
    assert "SIGABRT" in told.message
    assert died(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")[1] is None


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 4096, b'{"name": 1}'])
def test_a_note_that_is_none_explains_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "reading-7.json").write_bytes(content)
    (tmp_path / "reading-8.json").symlink_to(tmp_path / "reading-7.json")
    os.mkfifo(tmp_path / "reading-9.json")
    assert [note_of(tmp_path, pid) for pid in (6, 7, 8, 9)] == [None] * 4


def test_the_limit_grows_with_the_file_alone() -> None:
    assert memory_limit(1000, 4) - memory_limit(0) == 4000
