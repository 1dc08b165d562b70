"""Limits on reading a user's file: memory and time without progress; also finds out whose fault a crash is.

A file of a few kilobytes can make a reader use gigabytes or hours, and readers in native code can't be interrupted. So
the kernel refuses memory beyond a limit (`RLIMIT_DATA`), a timer interrupts Python code, and a thread that needs no
lock of Python's ends a process whose native code does not return a little later. A file beside the job records what is
being read, from which the parent process explains a crash. The memory limits need Linux; elsewhere only time is
limited. This module imports no torch, because supervisors use it too.
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
"""Longest time of one parse, and longest time without progress for a reader that reports progress."""
GRACE = 5.0
"""Seconds after the interrupt at which a process whose native code has not returned is ended."""
REARM = 1.0
"""Seconds between restarts of the timer by `progress`."""
BASE_BYTES = 512 << 20
"""Bytes of memory that reading any file may take, however small, plus a thread's stack for each core."""
STACK = 16 << 20
RESERVE = 256 << 20
"""Bytes of the machine's memory that reading leaves free."""
TIMED_OUT = 1
"""Exit status of a process that was ended because its native code did not return."""
CRASHES = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP})
"""Signals that a process gets from its own code: a reader that runs out of memory aborts, too."""
NOTE_BYTES = 4096
_SYSTEM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE})
"""Errors of the operating system that are not the file's fault."""


class Subject(NamedTuple):
    """A user's file: its name in messages, and the code and field of errors in it."""

    name: str
    code: str
    param: str

    def blamed(self, problem: str) -> UserError:
        """The error for this file; `problem` follows its name."""
        return UserError(self.code, f"{self.name} {problem}", self.param)


class Note(BaseModel):
    """Content of the file that names what a process is reading."""

    name: str
    code: str
    param: str
    bytes: int
    """Memory limit."""
    seconds: float
    """Time limit."""
    fault: Fault
    """Whose fault a lack of memory is: the user's, or capacity if the machine has less than the limit."""

    def explain(self, status: int) -> Failed | None:
        """The failure of a process that exited with this status (negative: a signal) while reading; none: the status
        has another cause than the file."""
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
    """Text on a file that takes too long."""
    return f"takes longer than {seconds:g} s to process"


def too_large(limit_bytes: int, fault: Fault) -> str:
    """Text on a file that takes too much memory."""
    if fault == "capacity":
        return f"takes more memory to process than this machine has free ({limit_bytes} bytes)"
    return f"takes more than {limit_bytes} bytes of memory to process, which no sound file of its size does"


class _Section(NamedTuple):
    subject: Subject
    limit_bytes: int
    seconds: float
    fault: Fault
    limit: int
    """`RLIMIT_DATA` during the reading."""


class _Process:
    """Sections that are open in this process; one object, because limits, timers and signals are per process."""

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
        """Set limits, timers and note for the innermost section."""
        section = self.sections[-1] if self.sections else None
        _disarm()
        _limit_data(section.limit if section else self.before)
        self._write(section)
        if section is not None:
            self.arm()

    def arm(self) -> None:
        """Start the innermost section's timer."""
        seconds = self.sections[-1].seconds
        self.armed_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, _interrupt)
            signal.setitimer(signal.ITIMER_REAL, seconds, REARM)  # repeated: a library may swallow the exception
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=2)

    def _write(self, section: _Section | None) -> None:
        if self.note is None:
            return
        os.ftruncate(self.note, 0)
        if section is not None:
            note = Note(
                **section.subject._asdict(), bytes=section.limit_bytes, seconds=section.seconds, fault=section.fault
            )
            os.pwrite(self.note, note.model_dump_json().encode(), 0)


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
def reading(subject: Subject, limit_bytes: int | None = None, seconds: float | None = None) -> Iterator[None]:
    """Limit the block to `limit_bytes` more bytes of memory, and to `seconds` since the last `progress`; any other
    error in it counts as the file's, too. Sections may be nested.

    Raises UserError for the subject; CapacityError (`out_of_memory`) if the machine has less memory than `limit_bytes`.
    None: the limits for a small file.
    """
    section = _section(
        subject, memory_limit(0) if limit_bytes is None else limit_bytes, SECONDS if seconds is None else seconds
    )
    _process.begin(section)
    try:
        yield
    except BaseException as error:
        failure = _explain(error, section)
        if failure is None:
            raise
        traceback.print_exc(file=sys.stderr)
        raise failure from error
    finally:
        _process.end()


@contextmanager
def unbounded() -> Iterator[None]:
    """Suspend the limits for the service's own work, such as the import of a library."""
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
    """Report progress of the reader, which restarts its time limit."""
    if _process.sections and time.monotonic() - _process.armed_at >= REARM:
        _process.arm()


def memory_limit(size: int, growth: int = 1) -> int:
    """Memory limit in bytes for a file of `size` bytes, which may take `growth` times its size."""
    return BASE_BYTES + STACK * (os.cpu_count() or 1) + growth * size


def _section(subject: Subject, limit_bytes: int, seconds: float) -> _Section:
    available = available_bytes()
    fault: Fault = "user"
    if available is not None and available - RESERVE < limit_bytes:
        limit_bytes, fault = max(available - RESERVE, BASE_BYTES // 2), "capacity"
    limit = _data_bytes() + limit_bytes
    return _Section(subject, limit_bytes, seconds, fault, min([limit, *(outer.limit for outer in _process.sections)]))


def _explain(error: BaseException, section: _Section) -> JobError | None:
    """The job's error for an exception while reading; none: it is a job error itself, or not the file's fault."""
    if isinstance(error, JobError):
        return None
    if _is_out_of_memory(error):
        problem = too_large(section.limit_bytes, section.fault)
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


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by Python, by the system (a mapped file), or by a library in C++."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "bad_alloc" in str(error)


def is_panic(error: BaseException) -> bool:
    """Whether native code in Rust panicked; that is no `Exception`, and its class can't be imported."""
    return type(error).__name__ == "PanicException"


def _first_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) else error  # str(error) has the path, which is internal
    return str(reason).strip().partition("\n")[0][:200] or type(error).__name__


@contextmanager
def noted_in(folder: Path) -> Iterator[None]:
    """Record in `folder` what this process is reading, for `note_of` after a crash."""
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
    """Note of what the process was reading when it ended; none: it was not reading."""
    try:
        descriptor = os.open(folder / _note_name(pid), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        try:
            return Note.model_validate_json(file.read(NOTE_BYTES))
        except ValidationError:  # it is empty, or its writer was killed while writing
            return None


def _note_name(pid: int) -> str:
    return f"reading-{pid}.json"


def _data_bytes() -> int:
    """Private writable memory that this process has mapped, which `RLIMIT_DATA` limits."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def _limit_data(soft: int) -> None:
    """Set `RLIMIT_DATA` on Linux alone: elsewhere this limit does not count mapped memory."""
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
