"""`stillhouse node`: a machine that helps a worker with jobs for several machines; it has no access to the service."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.distributed.launch import assist
from worker.distributed.nodes import come
from worker.errors import SystemFault
from worker.trainer.run import run

LOOK_SECONDS = 1.0
"""Between two looks whether the worker calls."""

Tell = Callable[[str], None]


def serve(address: str, tell: Tell) -> None:
    """Take part in one job after the other of the worker that calls at `address` (host:port), until a signal comes.

    Raises OSError when the address can't be looked up.
    """
    known, said = set[str](), f"waiting for jobs of {address}"
    tell(said)
    while True:
        try:
            node, found = come(address, known), said
        except SystemFault as error:
            node, found = None, error.message
        if found != said:  # once
            tell(said := found)
        if node is None:
            time.sleep(LOOK_SECONDS)
            continue
        tell(f"joining a job on {node.place.nodes} machines")
        with TemporaryDirectory(prefix="stillhouse-node-") as folder:
            word = assist(run, node, Path(folder))
        tell("done" if word is None else f"failed: {word.message}")
