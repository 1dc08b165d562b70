"""Trains one student of a comparison in this process, and returns its metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.recipe.job import JobSpec
from worker.machine import make_deterministic
from worker.protocol import Assignment, CachePlace, Failed, PhaseBegan, Report
from worker.trainer.run import run

PARALLEL = 2
"""Jobs at a time, each on one thread."""
Document = dict[str, Any]


class Trained(NamedTuple):
    """Result of a succeeded job."""

    report: Document
    step_ms: float
    """CPU time of an optimizer step, including all stages and the computation of the cached teacher outputs."""


def prepare_process() -> None:
    """Called first in each process that trains."""
    make_deterministic()
    torch.set_num_threads(1)


def training_pool(processes: int = PARALLEL) -> ProcessPoolExecutor:
    """Processes that train, made from one that has no threads: a fork of this one can hang or crash."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(processes, context, initializer=prepare_process)


def train(name: str, document: Document, inputs: Mapping[str, Path], out: Path, cache: Path) -> Trained:
    """Run a job with files staged in `inputs`. Raises RuntimeError if it fails."""
    out.mkdir()
    spec = JobSpec.model_validate_json(json.dumps(document))
    staged = {reference: str(path) for reference, path in inputs.items()}
    clock = _Clock()
    assignment = Assignment(spec=spec, inputs=staged, teacher_cache=CachePlace(folder=str(cache)))
    result = run(assignment, out, clock.receive, lambda: False)
    if isinstance(result, Failed):
        raise RuntimeError(f"{name}: {result.message}")
    report = json.loads((out / "bundle" / "report.json").read_bytes())
    return Trained(report, clock.spent / report["train"]["steps"])


def learns_from_a_teacher(document: Document) -> bool:
    """Whether a loss of the job, or its method, needs a teacher."""
    job = JobSpec.model_validate_json(json.dumps(document))
    needs = any(term.needs_teacher for terms in job.objectives.values() for term in terms)
    return needs or job.recipe.method.learns_from_teacher


class _Clock:
    """CPU time of this process during training, in milliseconds, which excludes other processes."""

    def __init__(self) -> None:
        self.spent = 0.0

    def receive(self, message: Report) -> None:
        """Start at the phase of training and stop at the next one."""
        if isinstance(message, PhaseBegan):
            now = 1e3 * time.process_time()
            if message.phase == "training":
                self.spent = now
            elif message.phase == "evaluating":
                self.spent = now - self.spent
