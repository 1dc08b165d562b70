"""Rules of quantised networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.architectures import BuiltIn, InpFormerNetwork, Network
from app.recipe.students.heads import LinearHead, SvmHead
from app.recipe.students.model import ModelConfig
from app.recipe.students.quantisation import QuantisationSpec


def quantisation_problems(job: JobSpec, network: Network, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """Problems of a job whose student, `network`, or another trained network is quantised. `teachers` are descriptions
    of stored models by reference."""
    if (spec := _quantisation(network)) is not None:
        yield from _student_problems(job, network, spec)
    for path, other in job.recipe.method.networks().items():
        if (found := _quantisation(other)) is not None:
            yield Problem(f"{path}.quantise", f"is {found.kind}, and only the student can be quantised", "null")
    for index, teacher in enumerate(job.all_teachers):
        stored = teachers.get(teacher.reference)
        if teacher.name == job.trained_teacher and stored and _quantisation(stored.architecture):
            found = f"is quantised, and {job.recipe.method.kind} trains it"
            yield Problem(f"{job.teacher_path(index)}.{teacher.source}", found, "a model in float32")
    if isinstance(network, InpFormerNetwork) and _quantisation(network.encoder):
        yield Problem("student.model", "is quantised, and can't be a frozen encoder", "a model in float32")


def _student_problems(job: JobSpec, network: Network, spec: QuantisationSpec) -> Iterator[Problem]:
    unfit = {
        "recipe.method.kind": (job.recipe.method.kind, "supervised"),
        "recipe.compile": (str(job.recipe.compile).lower(), "false"),
        "resources.processes": (str(job.resources.size), "1"),
    }
    for param, (given, accepted) in unfit.items():
        if given != accepted:
            found = f"is {given}, and the quantised student (quantise: {spec.kind}) observes every batch as a whole"
            yield Problem(param, found, accepted)
    if "onnx-int8" in (job.export or ()):
        found = f"has onnx-int8, which would quantise a student again that is trained for few bits ({spec.kind})"
        yield Problem("export", found, "onnx")
    head = getattr(network, "head", None)
    if not isinstance(head, LinearHead | SvmHead):
        found = f"is {getattr(head, 'kind', None)}, which is no plain product of features and weights"
        yield Problem("student.head.kind", found, "linear or svm, or quantise: null")


def _quantisation(network: Network) -> QuantisationSpec | None:
    return network.quantise if isinstance(network, BuiltIn) else None
