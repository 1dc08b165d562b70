"""Runs a job in this process, or in several new ones."""

from __future__ import annotations

from pathlib import Path

from worker.protocol import Assignment, Send, ShouldStop, TrainerResult
from worker.trainer.run import run


def perform(assignment: Assignment, folder: Path, send: Send, stop: ShouldStop) -> TrainerResult:
    """`run` in this process or, if the job needs several, in new processes."""
    if assignment.spec.resources.size == 1:
        return run(assignment, folder, send, stop)
    from worker.distributed.launch import launch  # torch's launcher takes a while to import

    return launch(run, assignment, folder, send, stop)
