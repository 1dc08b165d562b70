"""What memory there is, and who ended a process: itself, the kernel for want of memory, or somebody else.

No torch: supervisors ask too.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

SENT = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that a program does not bring upon itself: somebody has sent them."""


def oom_kills(counters: Path | None = None) -> int:
    """Processes that the kernel has killed so far for want of memory; 0 where it does not count them.

    Of the control group that this process is in, which its children share, where the kernel counts by group; else of
    the machine.
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
    """Memory that this machine, or the container that this process is in, has left; none where it can't be told."""
    known = [_machine(memory), _container(cgroup)]
    return min((bytes_ for bytes_ in known if bytes_ is not None), default=None)


def _machine(memory: Path) -> int | None:
    with suppress(OSError):
        for line in memory.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _container(cgroup: Path) -> int | None:
    """Of version 2, as containers see their own group; what only caches files can be taken back."""
    with suppress(OSError, ValueError):
        most = int((cgroup / "memory.max").read_text())  # ValueError: "max", which is none
        taken = int((cgroup / "memory.current").read_text())
        lines = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        cached = sum(int(count) for name, count in lines if name in ("inactive_file", "active_file"))
        return most - taken + cached
    return None


def killed_from_outside(status: int) -> bool:
    """Whether a process with this exit status (negative for a signal) was ended by somebody else.

    Ask `oom_kills` first: the kernel, short of memory, kills by SIGKILL as an operator does.
    """
    return -status in SENT


def _own_group(groups: Path = Path("/proc/self/cgroup")) -> Path:
    """Folder of this process's group in the second version of the interface."""
    with suppress(OSError):
        for line in groups.read_text().splitlines():
            number, _, path = line.partition("::")
            if number == "0":
                return Path("/sys/fs/cgroup") / path.lstrip("/")
    return Path("/sys/fs/cgroup")
