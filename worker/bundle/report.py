"""Content of `report.json`, the machine-readable report of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan
from app.recipe.students.architectures import InpFormer, Shrink
from app.recipe.students.conversion import Convert
from app.recipe.students.derived import derived_teacher
from app.recipe.students.model import ModelConfig
from app.recipe.students.shrink import kept_heads, kept_layers, sized, teacher_depth
from app.recipe.tasks.base import MainMetric
from worker.tasks.base import ClassRow, Figures
from worker.training.history import Point

Report = dict[str, Any]


def epochs_figures(plan: TrainingPlan, main: MainMetric, kept: str, last: Point, best: Point) -> Figures:
    """Figures of the last and the best evaluated epoch, the deciding metric, and which of both was exported."""
    rows = {"last": last, "best": best}
    figures = {name: {"step": row.step, "epoch": plan.epoch_at(row.step), **row.values} for name, row in rows.items()}
    return {"kept": kept, "by": main.of(last.values), **figures}


def origin_figures(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Figures | None:
    """Origin of the student's initial weights: a stored model, or layers and heads of a teacher, by their numbers
    there; none if they were random. `teachers` has configs by name."""
    if job.start is not None:
        return {"started_from": job.start.reference}
    if isinstance(job.student, InpFormer):
        return {"encoder": job.student.reference, "layers": job.student.layers}
    name = derived_teacher(job)
    if isinstance(job.student, Convert):
        return {"teacher": name, "converted_to": job.student.to}
    if name is None or not isinstance(job.student, Shrink):
        return None
    network = teachers[name].architecture
    wanted = sized(job.student, job, network)
    depth, heads = teacher_depth(network), kept_heads(wanted, network)
    layers = {"teacher": name, "init": job.student.init, "layers": kept_layers(wanted, depth), "of_layers": depth}
    if heads is None:
        return layers
    queries = {"heads": heads.queries, "of_heads": heads.of}
    return layers | queries | {"shared_heads": heads.shared, "of_shared_heads": heads.of_shared}


def class_figures(
    student: Sequence[ClassRow] | None, teacher: Sequence[ClassRow] | None, names: Sequence[str] | None
) -> list[Figures] | None:
    """Table of classes: accuracy of student and teacher on each; null if a class has no sample."""
    if student is None:
        return None
    rows: list[Figures] = [{"class": row.number, "samples": row.samples, "student": row.accuracy} for row in student]
    for row, name in zip(rows, names or (), strict=False):
        row["name"] = name
    for row, other in zip(rows, teacher or (), strict=False):
        row["teacher"] = other.accuracy
    return rows


def train_figures(
    plan: TrainingPlan,
    seconds: float,
    device: torch.device,
    student_flops: int,
    teacher_flops: Sequence[int],
) -> Figures:
    """Steps, time and operations of training, with those of the student, and the `teacher_flops` of each other network,
    for each sample; seconds are over all attempts."""
    samples = plan.samples_until(plan.total_steps)
    return {
        "steps": plan.total_steps,
        "epochs": plan.epoch_at(plan.total_steps),
        "seconds": seconds,
        "samples_per_second": samples / max(seconds, 1e-9),
        "flops": (student_flops + sum(teacher_flops)) * samples,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
