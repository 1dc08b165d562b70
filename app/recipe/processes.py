"""Rules of a job on several processes."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.job import JobSpec
from app.recipe.losses import KdSim
from app.recipe.losses.taps import Taps
from app.recipe.optimizers import NormalizedGd
from app.recipe.problem import Problem
from app.recipe.teachers.cache import NoCache

FIELD = "resources.processes"


def processes_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems that keep several processes from computing the steps of a single one."""
    size = job.resources.size
    if size == 1:
        if job.resources.sharding != "none":
            yield Problem("resources.sharding", "is fsdp, and a single process holds all there is", "none")
        return
    if job.resources.queue == "any":
        found = f"is any, and {size} processes need a fixed one: on a CPU they share cores, otherwise each has a GPU"
        yield Problem("resources.queue", found, "cpu or gpu, or one process")
    if size > job.recipe.batch_size:
        yield Problem(FIELD, f"{size} is more than the samples of a batch", f"<= {job.recipe.batch_size}")
    objectives, answer = [*job.objectives.values(), *job.recipe.method.objectives().values()], job.task_spec.answers
    coupled = {term.kind for terms in objectives for term in terms if term.couples(answer) and not term.gathers}
    for kind in sorted(coupled - job.recipe.method.divides):
        found = f"is {size}, but {kind} compares all samples of a batch with each other, and each process has a share"
        yield Problem(FIELD, found, "1")
    yield from _optimizer_problems(job)
    yield from _cache_problems(job)
    if job.resources.sharding == "fsdp":
        yield from _sharding_problems(job)
    if job.recipe.compile:
        yield Problem("recipe.compile", f"is on, but a step of {size} processes is not compiled", "false")


def _cache_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of the teacher cache: it needs processes that share a disk and can each run the teacher."""
    found = None
    if job.resources.nodes > 1:
        found = "the machines of a job (resources.nodes) have no disk in common"
    elif job.resources.sharding == "fsdp":
        found = "processes that hold a part of a teacher each must run it together (resources.sharding: fsdp)"
    if found and job.all_teachers and not isinstance(job.teacher_cache, NoCache):
        yield Problem("teacher_cache.store", f"is on, but {found}", "off")


def _optimizer_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of optimizers that need more than parameters and gradients, which are the same in all processes."""
    for path, optimizer in job.recipe.optimizers.items():
        if isinstance(optimizer.stepping, NormalizedGd):
            found = "normalized-gd needs the outputs of a whole batch, and each process has a share"
            yield Problem(f"{path}.kind", found, "any other, or one process")


def _sharding_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of settings that need whole weights or activations, of which a process has only a shard."""
    for index, teacher in enumerate(job.all_teachers):
        if teacher.precision == "fp8":
            found = "is fp8, whose weights are not divided between processes (resources.sharding: fsdp)"
            yield Problem(f"{job.teacher_path(index)}.precision", found, "bf16 or fp32, or resources.sharding: none")
    yield from _looking_inside(job)
    if job.recipe.channels_last:
        found = "is on, but weights are divided row by row (resources.sharding: fsdp), and need to lie so"
        yield Problem("recipe.channels_last", found, "false")


def _looking_inside(job: JobSpec) -> Iterator[Problem]:
    for path, terms in job.objectives.items():
        for index, term in enumerate(terms):
            if term.taps() != Taps() or term.reads_weights or isinstance(term, KdSim):
                found = f"{term.kind} looks inside a model, and with resources.sharding: fsdp no process has all of it"
                yield Problem(f"{path}[{index}].kind", found, "a loss on outputs, or resources.sharding: none")
