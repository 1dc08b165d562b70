"""Rules of quantised networks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.architectures import BuiltIn, InpFormerNetwork, Mlp, Network
from app.recipe.students.heads import LinearHead, SvmHead
from app.recipe.students.inputs import Input
from app.recipe.students.layers import Relu
from app.recipe.students.model import ModelConfig
from app.recipe.students.quantisation import QUANTISATIONS, Binary, Qat, QuantisationSpec, ShiftQuant

SPECIAL_FORMATS = frozenset(name for kind in QUANTISATIONS for name in kind.formats)
"""Export formats of some quantised students alone."""


def quantisation_problems(
    job: JobSpec, network: Network, teachers: Mapping[str, ModelConfig], taken: Input | None
) -> Iterator[Problem]:
    """Problems of a job whose student, `network`, or another trained network is quantised. `teachers` are descriptions
    of stored models by reference; `taken` is the student's input, if known."""
    spec = _quantisation(network)
    if spec is not None:
        yield from _student_problems(job, network, spec)
    if isinstance(spec, ShiftQuant):
        yield from _shift_problems(job, network, spec, taken)
    if isinstance(spec, Binary):
        yield from _binary_problems(job, network, spec)
    yield from _format_problems(job, spec)
    yield from _other_problems(job, network, teachers)


def _format_problems(job: JobSpec, spec: QuantisationSpec | None) -> Iterator[Problem]:
    for name in sorted(SPECIAL_FORMATS & {*(job.export or ())}):
        if spec is None or name not in spec.formats:
            kinds = " or ".join(each.model_fields["kind"].default for each in QUANTISATIONS if name in each.formats)
            yield Problem("export", f"has {name}, which is for students with quantise: {kinds}", "other formats")


def _other_problems(job: JobSpec, network: Network, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """Problems of quantised networks other than the student."""
    for path, other in job.recipe.method.networks().items():
        if (found := _quantisation(other)) is not None:
            yield Problem(f"{path}.quantise", f"is {found.kind}, and only the student can be quantised", "null")
    for index, teacher in enumerate(job.all_teachers):
        stored = teachers.get(teacher.reference)
        if teacher.name == job.trained_teacher and stored and _quantisation(stored.architecture):
            why = f"is quantised, and {job.recipe.method.kind} trains it"
            yield Problem(f"{job.teacher_path(index)}.{teacher.source}", why, "a model in float32")
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
            found = f"is {given}, and a student with quantise: {spec.kind} changes its state in its forward pass"
            yield Problem(param, found, accepted)
    if "onnx-int8" in (job.export or ()):
        found = f"has onnx-int8, which would quantise a student again that is trained for few bits ({spec.kind})"
        yield Problem("export", found, "onnx")
    if isinstance(network, Mlp) and not isinstance(spec, Qat) and not isinstance(network.activation, Relu):
        found = f"is {network.activation.kind}, and {spec.kind} is for layers with ReLU between them"
        yield Problem("student.activation.kind", found, "relu, or quantise: qat")
    head = getattr(network, "head", None)
    if not isinstance(head, LinearHead | SvmHead):
        found = f"is {getattr(head, 'kind', None)}, which is no plain product of features and weights"
        yield Problem("student.head.kind", found, "linear or svm, or quantise: null")


def _shift_problems(job: JobSpec, network: Network, spec: ShiftQuant, taken: Input | None) -> Iterator[Problem]:
    if not isinstance(network, Mlp):
        found = f"is {network.architecture}, and {spec.kind} is for chains of linear layers"
        yield Problem("student.architecture", found, "mlp, or quantise: qat")
        return
    inputs = [math.prod(taken.axes)] if taken else []
    widest = max([*inputs, *network.hidden], default=1)
    if (bound := spec.sum_bound(widest)) >= 1 << 31:
        found = f"is {spec.groups}, and sums of {widest} products of {spec.bits} bits, shifted, may reach {bound:,}"
        yield Problem("student.quantise.groups", found, "less, or fewer bits: sums are below 2^31")
    yield from _length_problems(job, spec)


def _binary_problems(job: JobSpec, network: Network, spec: Binary) -> Iterator[Problem]:
    if not isinstance(network, Mlp):
        found = f"is {network.architecture}, which has norms, shortcuts or max pooling that spiking neurons can't have"
        yield Problem("student.architecture", found, "mlp, or another student.quantise")
    elif len(network.hidden) < 2:
        found = f"is {network.hidden}, and the first and the last layer keep their weights"
        yield Problem("student.hidden", found, "two hidden layers or more")
    if job.evaluation.keep == "best":
        found = f"is best, and the thresholds of {spec.kind} are computed once, after the last step"
        yield Problem("evaluation.keep", found, "last")
    yield from _length_problems(job, spec)


def _length_problems(job: JobSpec, spec: QuantisationSpec) -> Iterator[Problem]:
    if job.embedding is not None and job.embedding.normalise:
        yield Problem("embedding.normalise", f"is true, and {spec.kind} has no division by a length", "false")


def _quantisation(network: Network) -> QuantisationSpec | None:
    return network.quantise if isinstance(network, BuiltIn) else None
