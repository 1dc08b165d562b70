"""Rules of jobs with more labels than `MANY_LABELS`, whose targets are lists, and whose evaluation keeps summaries of
logits: what needs a number for each label of a sample does not work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from app.recipe.data.facts import SampleFacts
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.model import ModelConfig
from app.recipe.tasks.multi_label import LISTED_METRICS, MANY_LABELS


def many_label_problems(
    job: JobSpec, teachers: Mapping[str, ModelConfig], train: SampleFacts | None
) -> Iterator[Problem]:
    """Problems of a job whose labels are known to be many; `teachers` are descriptions by reference."""
    count = _labels(job, teachers, train) if job.task_spec.answers == "labels" else None
    if count is None or count <= MANY_LABELS:
        return
    mixing = next((index for index, step in enumerate(job.data.augment) if step.mixes), None)
    found: dict[str, tuple[bool, str]] = {
        f"data.augment[{mixing}].kind": (mixing is not None, "augmentations that do not mix samples"),
        "recipe.method.kind": (job.recipe.method.kind != "supervised", "supervised"),
        "teachers": (len(job.all_teachers) > 1, "one teacher"),
        "evaluation.diagnostics": (bool(job.evaluation.diagnostics), "none"),
        "export": ("onnx-int8" in (job.export or ()), "other formats"),
    }
    for name in job.evaluation.require_teacher or {}:
        known = name in LISTED_METRICS or name not in job.task_spec.metrics  # others are refused as no metrics
        found[f"evaluation.require_teacher.{name}"] = (not known, f"one of {', '.join(LISTED_METRICS)}")
    for param, (wrong, accepted) in found.items():
        if wrong:
            message = f"does not work with {count} labels, whose targets are lists (above {MANY_LABELS})"
            yield Problem(param, message, accepted)


def _labels(job: JobSpec, teachers: Mapping[str, ModelConfig], train: SampleFacts | None) -> int | None:
    """Number of labels: as declared, in the data, or of a single teacher whose names the data's labels are; none: it is
    unknown before the data was read."""
    if job.data.declared_classes is not None:
        return job.data.declared_classes
    if train is not None and train.classes is not None:
        return train.classes
    named = [teachers[each.reference] for each in job.all_teachers if each.reference in teachers]
    return named[0].classes if len(named) == len(job.all_teachers) == 1 and named[0].class_names else None
