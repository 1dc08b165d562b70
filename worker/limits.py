"""Bounds on the reading of one file of a user's: memory, time without progress, and whose fault a death is.

A few kilobytes can ask a reader for gigabytes or for hours, and readers in native code can't be interrupted. So the
kernel refuses memory beyond a bound (`RLIMIT_DATA`), Python code is interrupted by a timer, and a process whose native
code does not come back a little later is ended by a thread that needs no lock of Python's. What is being read stands
in a file beside the job, from which whoever started the process explains its death. The bounds on memory need Linux;
elsewhere only time is bounded. This module imports no torch, for supervisors use it too.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import resource
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from worker.errors import CapacityError, Fault, JobError, UserError
from worker.memory import available_bytes
from worker.protocol import Failed

SECONDS = 60.0
"""Longest time that one parse may take, and longest without progress of a reader that reports it."""
GRACE = 5.0
"""Time after which native code that was interrupted and did not return is ended with its process."""
REARM = 1.0
"""Progress is taken note of so often, in seconds."""
ROOM = 512 << 20
"""Bytes of memory that reading any file may take, however small; a thread's stack on each core comes on top."""
STACK = 16 << 20
RESERVE = 256 << 20
"""Bytes of the machine's memory that reading leaves to others."""
TIMED_OUT = 1
"""Exit status of a process that was ended because its native code did not return."""
CRASHES = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP})
"""Signals that a process gets from its own code: a reader that runs out of memory aborts, too."""
NOTE_BYTES = 4096
_SYSTEM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE})
"""Errors of the operating system that say nothing about the file that is read."""


class Subject(NamedTuple):
    """A file of the user's: its name in messages, and the code and field of the failure that it is to blame for."""

    name: str
    code: str
    param: str

    def blamed(self, problem: str) -> UserError:
        """The failure that is the file's; `problem` goes on from its name."""
        return UserError(self.code, f"{self.name} {problem}", self.param)


class Note(BaseModel):
    """Content of the file that names what a process is reading."""

    name: str
    code: str
    param: str
    bytes: int
    """Memory that it may take."""
    seconds: float
    """Time that it may take."""
    fault: Fault
    """Whose fault a lack of memory is: the file's, or the machine's, which has less than the file may take."""

    def explain(self, status: int) -> Failed | None:
        """The failure of a process that left with this status (negative: a signal) while reading; none: the status
        says nothing about the file."""
        if status == TIMED_OUT:
            return self._failed("user", self.code, f"{self.name} {too_slow(self.seconds)}")
        if -status not in CRASHES:
            return None
        if self.fault == "capacity":
            return self._failed("capacity", "out_of_memory", f"{self.name} {too_large(self.bytes, self.fault)}")
        how = signal.Signals(-status).name
        problem = f"ended the process that read it ({how}): it is damaged, or takes more than {self.bytes} bytes"
        return self._failed("user", self.code, f"{self.name} {problem} of memory")

    def _failed(self, fault: Fault, code: str, message: str) -> Failed:
        return Failed(fault=fault, code=code, message=message, param=self.param)


def too_slow(seconds: float) -> str:
    """Problem of a file that takes too long."""
    return f"takes longer than {seconds:g} s to process"


def too_large(room: int, fault: Fault) -> str:
    """Problem of a file that takes too much memory."""
    if fault == "capacity":
        return f"takes more memory to process than this machine has free ({room} bytes)"
    return f"takes more than {room} bytes of memory to process, which no sound file of its size does"


class _Section(NamedTuple):
    subject: Subject
    room: int
    seconds: float
    fault: Fault
    limit: int
    """`RLIMIT_DATA` while it is read."""


class _Process:
    """What this process reads; limits, timers and signals are a process's, so there is one of it."""

    def __init__(self) -> None:
        self.sections: list[_Section] = []
        self.note: int | None = None
        self.armed_at = 0.0
        self.before = 0

    def begin(self, section: _Section) -> None:
        if not self.sections:
            self.before = resource.getrlimit(resource.RLIMIT_DATA)[0]
        self.sections.append(section)
        self.settle()

    def end(self) -> None:
        self.sections.pop()
        self.settle()

    def settle(self) -> None:
        """Bring limits, timers and note in line with the innermost section."""
        section = self.sections[-1] if self.sections else None
        _disarm()
        _limit_data(section.limit if section else self.before)
        self._write(section)
        if section is not None:
            self.arm()

    def arm(self) -> None:
        """Let the innermost section's time begin."""
        seconds = self.sections[-1].seconds
        self.armed_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, _interrupt)
            signal.setitimer(signal.ITIMER_REAL, seconds, REARM)  # again: what it raises may be swallowed
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=2)

    def _write(self, section: _Section | None) -> None:
        if self.note is None:
            return
        os.ftruncate(self.note, 0)
        if section is not None:
            told = Note(**section.subject._asdict(), bytes=section.room, seconds=section.seconds, fault=section.fault)
            os.pwrite(self.note, told.model_dump_json().encode(), 0)


_process = _Process()


def _interrupt(*_: object) -> None:
    if _process.sections:
        section = _process.sections[-1]
        raise section.subject.blamed(too_slow(section.seconds))


def _disarm() -> None:
    faulthandler.cancel_dump_traceback_later()
    if threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def reading(subject: Subject, room: int | None = None, seconds: float | None = None) -> Iterator[None]:
    """Bound what is done within to `room` bytes of memory beyond what is taken already, and to `seconds` since the
    last `progress`; whatever else goes wrong is the file's fault, too. Sections may lie within each other.

    Raises UserError blaming the subject; CapacityError (`out_of_memory`) where the machine has less memory than
    `room`. None: the bounds of a small file.
    """
    section = _section(subject, room_for(0) if room is None else room, SECONDS if seconds is None else seconds)
    _process.begin(section)
    try:
        yield
    except BaseException as error:
        told = _explain(error, section)
        if told is None:
            raise
        traceback.print_exc(file=sys.stderr)
        raise told from error
    finally:
        _process.end()


@contextmanager
def unbounded() -> Iterator[None]:
    """What is done within is ours, such as the import of a library: nothing of it counts."""
    sections, _process.sections = _process.sections, []
    if sections:
        _process.settle()
    try:
        yield
    finally:
        _process.sections = sections
        if sections:
            _process.settle()


def progress() -> None:
    """The reader has come further: its time begins anew."""
    if _process.sections and time.monotonic() - _process.armed_at >= REARM:
        _process.arm()


def room_for(size: int, growth: int = 1) -> int:
    """Bytes of memory to read a file of `size` bytes that may grow so many times."""
    return ROOM + STACK * (os.cpu_count() or 1) + growth * size


def _section(subject: Subject, room: int, seconds: float) -> _Section:
    available = available_bytes()
    fault: Fault = "user"
    if available is not None and available - RESERVE < room:
        room, fault = max(available - RESERVE, ROOM // 2), "capacity"
    limit = _data_bytes() + room
    return _Section(subject, room, seconds, fault, min([limit, *(outer.limit for outer in _process.sections)]))


def _explain(error: BaseException, section: _Section) -> JobError | None:
    """What an error means for the job; none: it says so itself, or is none of the file's."""
    if isinstance(error, JobError):
        return None
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "bad_alloc" in str(error):
        problem = too_large(section.room, section.fault)
        if section.fault == "capacity":
            return CapacityError("out_of_memory", f"{section.subject.name} {problem}", section.subject.param)
        return section.subject.blamed(problem)
    if isinstance(error, RecursionError):
        return section.subject.blamed("nests too deeply to be read")
    if isinstance(error, OSError) and error.errno in _SYSTEM:
        return None
    if is_panic(error):
        return section.subject.blamed(f"can't be processed by its library: {_first_line(error)}")
    if not isinstance(error, Exception) or isinstance(error, GeneratorExit):
        return None
    return section.subject.blamed(f"can't be read: {_first_line(error)}")


def is_panic(error: BaseException) -> bool:
    """Whether native code in Rust gave up; that is no `Exception`, and of no class that can be imported."""
    return type(error).__name__ == "PanicException"


def _first_line(error: BaseException) -> str:
    told = error.strerror if isinstance(error, OSError) else error  # the text has the path, which is ours
    return str(told).strip().partition("\n")[0][:200] or type(error).__name__


@contextmanager
def noted_in(folder: Path) -> Iterator[None]:
    """Keep in `folder` what this process reads, for whoever has to explain its death with `note_of`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _note_name(os.getpid())
    _process.note = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield
    finally:
        os.close(_process.note)
        _process.note = None
        path.unlink(missing_ok=True)


def note_of(folder: Path, pid: int) -> Note | None:
    """What the process, which has ended, was reading in the middle of its job; none: it was reading nothing."""
    try:
        place = os.open(folder / _note_name(pid), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(place, "rb") as file:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            return None
        try:
            return Note.model_validate_json(file.read(NOTE_BYTES))
        except ValidationError:  # it is empty, or its writer was ended in the middle
            return None


def _note_name(pid: int) -> str:
    return f"reading-{pid}.json"


def _data_bytes() -> int:
    """Private writable memory that this process has mapped; what `RLIMIT_DATA` bounds."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def _limit_data(soft: int) -> None:
    """Linux alone counts what is mapped; elsewhere this limit would mean another thing."""
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
