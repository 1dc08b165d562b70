"""Available memory, and the cause of a process's end: itself, the kernel's out-of-memory killer, or a signal.

Imports no torch, because supervisors use it too.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

SENT = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that a program does not cause itself: another process has sent them."""


def oom_kills(counters: Path | None = None) -> int:
    """Number of processes that the kernel has killed so far for lack of memory; 0 if it does not count them.

    Counts this process's control group, which its children share, if the kernel counts by group; else the machine.
    """
    if counters is None:
        group = _own_group() / "memory.events"
        counters = group if group.is_file() else Path("/proc/vmstat")
    with suppress(OSError):
        for line in counters.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def available_bytes(memory: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory available on this machine, or in the container of this process; none if unknown."""
    known = [_machine(memory), _container(cgroup)]
    return min((bytes_ for bytes_ in known if bytes_ is not None), default=None)


def _machine(memory: Path) -> int | None:
    with suppress(OSError):
        for line in memory.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _container(cgroup: Path) -> int | None:
    """Available bytes of the container's control group (version 2); the kernel can reclaim the cache of files."""
    with suppress(OSError, ValueError):
        most = int((cgroup / "memory.max").read_text())  # ValueError: "max", which is no limit
        taken = int((cgroup / "memory.current").read_text())
        lines = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        cached = sum(int(count) for name, count in lines if name in ("inactive_file", "active_file"))
        return most - taken + cached
    return None


def killed_from_outside(status: int) -> bool:
    """Whether a process with this exit status (negative for a signal) was ended from outside.

    Check `oom_kills` first: the kernel's out-of-memory killer sends SIGKILL, as an operator may.
    """
    return -status in SENT


def _own_group(groups: Path = Path("/proc/self/cgroup")) -> Path:
    """Folder of this process's control group (version 2)."""
    with suppress(OSError):
        for line in groups.read_text().splitlines():
            number, _, path = line.partition("::")
            if number == "0":
                return Path("/sys/fs/cgroup") / path.lstrip("/")
    return Path("/sys/fs/cgroup")
