"""Loads the data of a job as its task does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from app.recipe.job import JobSpec
from app.recipe.students.model import ModelConfig
from worker.data.running_text import PackingDir
from worker.data.task_data import TaskData
from worker.tasks import task_for


def load_task(
    job: JobSpec,
    inputs: Mapping[str, Path],
    teachers: Mapping[str, ModelConfig],
    seed: int,
    packing: PackingDir | None = None,
) -> TaskData:
    return task_for(job.task).load(job, inputs, teachers, seed, packing)
