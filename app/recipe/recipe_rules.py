"""Rules of a recipe's batches and schedule."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.job import JobSpec
from app.recipe.optimizers import MultiStep
from app.recipe.problem import Problem
from app.recipe.tasks import tasks_with


def recipe_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of settings that contradict each other."""
    recipe = job.recipe
    if recipe.accumulate > recipe.batch_size:
        yield Problem(
            "recipe.accumulate", f"{recipe.accumulate} is more than the batch size", f"<= {recipe.batch_size}"
        )
    yield from _class_batch_problems(job)
    yield from _hard_negative_problems(job)
    yield from _pseudo_label_problems(job)
    if isinstance(recipe.schedule, MultiStep) and recipe.schedule.milestones[-1] >= recipe.epochs:
        yield Problem(
            "recipe.schedule.milestones",
            f"{recipe.schedule.milestones[-1]} is not reached",
            f"epochs < {recipe.epochs}",
        )


def _class_batch_problems(job: JobSpec) -> Iterator[Problem]:
    path, per_class, size = "recipe.samples_per_class", job.recipe.samples_per_class, job.recipe.batch_size
    if per_class is None:
        return
    if path not in job.task_spec.options:
        yield Problem(path, f"is for {tasks_with(path)}, the task is {job.task}", "null")
    elif size % per_class or size < 2 * per_class:
        found = f"is {per_class}, and recipe.batch_size is {size}"
        yield Problem(path, found, f"a divisor of {size}, for two classes or more")
    elif job.data.has_pairs():
        yield Problem(path, f"is {per_class}, and samples are pairs, without classes", "null")


def _hard_negative_problems(job: JobSpec) -> Iterator[Problem]:
    path, wanted, per_class = "recipe.hard_negatives", job.recipe.hard_negatives, job.recipe.samples_per_class
    if wanted is None:
        return
    if path not in job.task_spec.options:
        yield Problem(path, f"is for {tasks_with(path)}, the task is {job.task}", "null")
        return
    if per_class is None:
        found = "is given, and without recipe.samples_per_class batches are not drawn by class"
        yield Problem(path, found, "null, or recipe.samples_per_class")
    elif wanted.neighbours is not None and wanted.neighbours >= (together := job.recipe.batch_size // per_class):
        found = f"is {wanted.neighbours}, and a batch has {together} classes, one of them the anchor"
        yield Problem(f"{path}.neighbours", found, f"at most {together - 1}, or null")
    if job.resources.sharding != "none":
        found = f"is given, and with resources.sharding: {job.resources.sharding} no process has the whole student"
        yield Problem(path, found, "null, or resources.sharding: none")


def _pseudo_label_problems(job: JobSpec) -> Iterator[Problem]:
    path, wanted, size = "recipe.pseudo_labels", job.recipe.pseudo_labels, job.recipe.batch_size
    if wanted is None:
        return
    if path not in job.task_spec.options:
        yield Problem(path, f"is for {tasks_with(path)}, the task is {job.task}", "null")
        return
    if job.recipe.views == 1:
        yield Problem(path, "is given, and no loss compares views of a batch", "null, or a loss ntxent")
    if wanted.source == "teacher" and not job.all_teachers:
        yield Problem(f"{path}.source", "is teacher, and there is none", "autoencoder, or a teacher")
    if wanted.clusters is not None and wanted.clusters < size:
        found = f"is {wanted.clusters}, and a batch has {size} images, each of another cluster"
        yield Problem(f"{path}.clusters", found, f"{size} or more, or null")
