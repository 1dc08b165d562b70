"""What past jobs were, and how well their students did beside their teachers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from app.recipe.tasks import TASKS
from app.recommendations.features import DataFacts, Distillation, ModelFacts
from app.recommendations.repository import PastRow, StoredTeacher


class PastJobFacts(NamedTuple):
    """A past job with a teacher: its features' sources and its outcome."""

    job_id: str
    task: str
    data_set: str
    """Names its data set: the same samples with the same columns."""
    teacher: str
    """Reference of its first teacher."""
    distillation: Distillation
    ratio: float
    """Score of the student as a share of its best teacher's (see `MainMetric.ratio`)."""

    @property
    def recipe_key(self) -> str:
        """The same for the same recipes."""
        return recipe_key(self.distillation.recipe)


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """The same for the same recipes."""
    return json.dumps(recipe, sort_keys=True)


def first_teacher(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first teacher of a stored job; none: it has none."""
    named = spec.get("teachers") or ([spec["teacher"]] if spec.get("teacher") else [])
    return named[0] if named else None


def reference_of(teacher: Mapping[str, Any]) -> str:
    """Reference of a stored job's teacher (see `Origin.reference`)."""
    return teacher.get("model") or teacher.get("uri") or f"{teacher.get('hub')}@{teacher.get('revision')}"


def data_set_of(task: str, data: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """Name of a data set: its task, the digest of its training file, and the columns that are learned."""
    columns = [data.get(field) for field in ("input_key", "label_key", "input_columns", "label_columns")]
    return json.dumps([task, digests.get(data["train"], data["train"]), columns])


def learnable(
    rows: Iterable[PastRow], teachers: Mapping[str, StoredTeacher], digests: Mapping[str, str]
) -> list[PastJobFacts]:
    """Those of the past jobs whose student can be compared with a teacher, in the same order."""
    found = (_facts(row, teachers, digests) for row in rows)
    return [facts for facts in found if facts is not None]


def _facts(row: PastRow, teachers: Mapping[str, StoredTeacher], digests: Mapping[str, str]) -> PastJobFacts | None:
    teacher, result = first_teacher(row.spec), row.result or {}
    scores = result.get("teachers") or {}
    metric = TASKS[row.spec["task"]].main_metric
    best = metric.best(scores.values()) if scores else None
    ratio = None if best is None else metric.ratio(result["value"], best)
    if teacher is None or ratio is None:
        return None
    stored = teachers.get(reference_of(teacher), StoredTeacher(None, row.teacher_parameters))
    embedding = ((row.data or {}).get("embedding") or {}).get("values")
    data = DataFacts(
        row.spec["task"],
        (row.samples or {}).get("train"),
        row.classes or row.targets,
        tuple(embedding) if embedding else None,
    )
    return PastJobFacts(
        job_id=row.job_id,
        task=row.spec["task"],
        data_set=data_set_of(row.spec["task"], row.spec["data"], digests),
        teacher=reference_of(teacher),
        distillation=Distillation(
            data,
            ModelFacts(stored.network, stored.parameters or row.teacher_parameters, best),
            ModelFacts(row.network, row.parameters),
            row.spec["recipe"],
        ),
        ratio=ratio,
    )


def known_before(past: Sequence[PastJobFacts], data_set: str, teacher: str) -> tuple[PastJobFacts | None, bool]:
    """The newest past job on a data set, with this teacher if there is one, and whether it has this teacher."""
    on_it = [job for job in past if job.data_set == data_set]
    with_it = [job for job in on_it if job.teacher == teacher]
    return next(iter(with_it or on_it), None), bool(with_it)
