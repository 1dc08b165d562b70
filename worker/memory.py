"""What memory there is, and whether the kernel had to kill for want of it; no torch, for supervisors ask too."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def oom_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has killed so far for want of memory; 0 where it does not count them."""
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
