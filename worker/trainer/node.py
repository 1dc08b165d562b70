"""`stillhouse node`: takes part in a worker's jobs for several machines, without access to the service."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.distributed.launch import assist
from worker.distributed.nodes import join_job
from worker.errors import SystemFault
from worker.trainer.run import run

POLL_SECONDS = 1.0
"""Interval at which the worker is polled for a job."""

Notify = Callable[[str], None]


def serve(address: str, notify: Notify) -> None:
    """Take part in one job after the other of the worker at `address` (host:port), until a signal is received.

    Raises OSError if the address can't be resolved.
    """
    known, shown = set[str](), f"waiting for jobs of {address}"
    notify(shown)
    while True:
        try:
            node, state = join_job(address, known), shown
        except SystemFault as error:
            node, state = None, error.message
        if state != shown:
            notify(shown := state)
        if node is None:
            time.sleep(POLL_SECONDS)
            continue
        notify(f"joining a job on {node.place.nodes} machines")
        with TemporaryDirectory(prefix="stillhouse-node-") as folder:
            failure = assist(run, node, Path(folder))
        notify("done" if failure is None else f"failed: {failure.message}")
