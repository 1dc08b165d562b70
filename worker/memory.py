"""Whether the kernel had to kill for want of memory; imports no torch, for the supervisor asks too."""

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
