"""Parent process of a trainer without a supervisor, which only reports how the trainer died."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from worker.limits import note_of
from worker.parent import die_with_parent

FORWARDED = {signal.SIGINT, signal.SIGTERM}
SENT_BY_A_PROCESS = 0
"""`si_code` of a signal sent by `kill`; one from a terminal has already reached the child."""


def continue_in_child(out: Path) -> None:
    """Return in a child process that works in `out`; this one waits for it, reports what it was reading if that ended
    it, and exits with its status. To be called before any thread runs. Does nothing on kernels other than Linux."""
    if sys.platform != "linux":
        return
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
    parent, child = os.getpid(), os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        die_with_parent(parent)
        return
    os._exit(_report(out, child, _status_of(child)))


def _status_of(child: int) -> int:
    """Its exit status once it has ended, negative for a signal; signals to this process are forwarded."""
    while True:
        came = signal.sigwaitinfo(FORWARDED | {signal.SIGCHLD})
        if came.si_signo in FORWARDED and came.si_code == SENT_BY_A_PROCESS:
            os.kill(child, came.si_signo)
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)


def _report(out: Path, child: int, status: int) -> int:
    """Print the cause of the end; returns the exit status."""
    note = note_of(out, child)
    if note is not None and (cause := note.explain(status)):
        sys.stderr.write(f"failed ({cause.fault}, {cause.code}): {cause.message}\n")
        sys.stderr.flush()
        return 1
    return status if status >= 0 else 128 - status
