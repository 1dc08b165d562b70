"""Gives a student that is a smaller copy of its teacher the teacher's weights: some layers, leading parts of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.model import Input, TextInput
from app.recipe.shrink import kept_layers, shrunk_teacher, teacher_depth
from app.recipe.students import Shrink, Vit
from worker.errors import UserError
from worker.students.model import Model

_LAYER = re.compile(r"^(blocks\.|stages\.\d+\.|(?:.+\.)?layers?\.)(\d+)(\..+)$")
"""What comes before a layer's number, the number, and the rest, in the zoo's names and the library's."""
_FUSED = re.compile(r".*\.attention\.qkv\.(weight|bias)$")


def inherit(student: Model, job: JobSpec, teachers: Mapping[str, Model]) -> Model:
    """Copy into `student` what it has of the teacher it was made of, in place; a student of its own stays as it is.

    Where teacher and student answer with different numbers of outputs, the student keeps its fresh last layer. Raises
    UserError when they read different tokens.
    """
    name = shrunk_teacher(job)
    if name is None or not isinstance(job.student, Shrink) or job.student.init == "fresh":
        return student
    teacher = teachers[name]
    _require_same_reading(student, teacher)
    kept = kept_layers(job.student, teacher_depth(teacher.config.architecture))
    take_over(student, teacher, kept)
    return student


@torch.no_grad()
def take_over(student: Model, teacher: Model, kept: Sequence[int]) -> None:
    """Layer i of `student` becomes layer `kept[i]` of `teacher`; of each weight, its leading part along every axis."""
    theirs = teacher.network.state_dict()
    answers = student.config.embedding is None and student.config.outputs != teacher.config.outputs
    last = _last_layers(student) if answers else set()
    for name, tensor in student.network.state_dict().items():
        if name in last:
            continue
        source = theirs[_renumbered(name, kept)]
        fused = isinstance(student.config.architecture, Vit) and _FUSED.match(name)
        tensor.copy_(_leading_of_three(source, tensor) if fused else _leading(source, tensor))


def _renumbered(name: str, kept: Sequence[int]) -> str:
    found = _LAYER.match(name)
    return name if found is None else f"{found[1]}{kept[int(found[2])]}{found[3]}"


def _leading(source: Tensor, like: Tensor) -> Tensor:
    return source[tuple(slice(0, size) for size in like.shape)]


def _leading_of_three(source: Tensor, like: Tensor) -> Tensor:
    """Queries, keys and values lie one after the other; of each the leading heads stay."""
    parts = zip(source.chunk(3), like.chunk(3), strict=True)
    return torch.cat([_leading(part, wanted) for part, wanted in parts])


def _last_layers(student: Model) -> set[str]:
    """Names of the weights whose first axis is that of the outputs: those of the last layer with weights."""
    last = [name for name, _ in student.network.named_parameters() if name.endswith(".weight")][-1]
    return {last, last.removesuffix("weight") + "bias"}


def _require_same_reading(student: Model, teacher: Model) -> None:
    if student.view != teacher.view or not _reads_as(student.config.input, teacher.config.input):
        raise UserError(
            "invalid_job",
            "the student can't take over the teacher's weights, for it reads other tokens; accepted: the teacher's "
            "tokenizer, or init: fresh",
            "student.init",
        )


def _reads_as(ours: Input, theirs: Input) -> bool:
    """Texts may be shorter than the teacher's, whose network may know more tokens than the tokenizer of both."""
    if not isinstance(ours, TextInput) or not isinstance(theirs, TextInput):
        return True
    fits = ours.length <= theirs.length and ours.vocabulary <= theirs.vocabulary
    return fits and (ours.pad, ours.separator) == (theirs.pad, theirs.separator)
