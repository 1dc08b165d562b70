"""Runs one server and never outlives its owner: `python guard.py FOLDER SIGNAL USER COMMAND…`.

The owner holds the other end of stdin. When it writes `stop`, or dies in whatever way, the pipe ends, and the server
gets SIGNAL, then SIGKILL after a grace. A pipe, unlike PR_SET_PDEATHSIG, works on macOS, does not depend on the thread
that started the server, and leaves someone to remove FOLDER after an owner that was killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10.0


def main(folder: str, stop_signal: str, user: str, *command: str) -> int:
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, user=user or None)
    owner = threading.Thread(target=mind_owner, args=(server, folder, signal.Signals[stop_signal]), daemon=True)
    owner.start()
    code = server.wait()
    if owner_has_gone.is_set():
        owner.join()
    return code


owner_has_gone = threading.Event()


def mind_owner(server: subprocess.Popen[bytes], folder: str, stop_signal: signal.Signals) -> None:
    said = os.read(sys.stdin.fileno(), 4)
    owner_has_gone.set()
    server.send_signal(stop_signal)
    try:
        server.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    if said != b"stop":
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
