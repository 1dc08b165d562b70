"""Sandbox of a process that reads an untrusted file: no network, other files or new processes, and bounded memory.

torch's restricted reader creates only tensors, but has had vulnerabilities. Code that exploits one finds a process
with an empty environment that can access only its folder. Linux only, as far as the kernel allows it to an
unprivileged process; the limits apply everywhere.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
"""System calls, by their number on every architecture."""
LANDLOCK_VERSION, LANDLOCK_BENEATH = 1, 1
FS_EXECUTE, FS_WRITE, FS_READ, FS_LIST, FS_REMOVE, FS_MAKE, FS_TRUNCATE = 1, 2, 4, 8, 1 << 5, 1 << 8, 1 << 14
FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Number of rights that a version of Landlock can withhold; from the fifth on, one more."""


TCP, SCOPE = 0b11, 0b11
"""Binding and connecting; signals and unnamed sockets of others."""
WITHHELD = {1: 1, 2: 1, 3: 1, 4: 2, 5: 2}
"""How many of files, TCP and scope a version of Landlock supports; from the sixth on, all three."""


def leave_network() -> bool:
    """Move into a new, empty network namespace; returns whether the kernel allowed it. No thread may run yet."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)


def keep_to(folder: Path, readable: Iterable[Path]) -> bool:
    """Restrict this thread to writing below `folder`, and reading there and below `readable`; returns whether it
    succeeded. Newer kernels also block TCP and access to other processes.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    version = libc.syscall(LANDLOCK_CREATE, None, 0, LANDLOCK_VERSION)
    if version < 1:
        return False
    handled = (1 << FS_RIGHTS.get(version, 16)) - 1
    attributes = struct.pack(f"{WITHHELD.get(version, 3)}Q", *(handled, TCP, SCOPE)[: WITHHELD.get(version, 3)])
    ruleset = libc.syscall(LANDLOCK_CREATE, attributes, len(attributes), 0)
    reading = FS_EXECUTE | FS_READ | FS_LIST
    writing = reading | FS_WRITE | FS_REMOVE | FS_MAKE | FS_TRUNCATE
    for path, rights in [(folder, writing), *((path, reading) for path in readable)]:
        _allow(libc, ruleset, path, rights & handled & (-1 if path.is_dir() else ~FS_LIST))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0) == 0)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    libc.syscall(LANDLOCK_ADD, ruleset, LANDLOCK_BENEATH, struct.pack("=Qi", rights, place), 0)
    os.close(place)


def limit(memory: int, file_bytes: int, seconds: int) -> None:
    """Limit further resources of this process: bytes of memory, bytes per file, CPU seconds, no new processes.

    To be called before `keep_to`, which blocks the file with its current memory.
    """
    _lower(resource.RLIMIT_AS, _address_space() + memory)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_CPU, seconds)
    _lower(resource.RLIMIT_NPROC, 0)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _address_space() -> int:
    """Bytes mapped so far: torch alone takes from half a gigabyte to ten, by its build."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 16 << 30
