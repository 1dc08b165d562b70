"""Gives a student that is a smaller copy of its teacher the teacher's weights: some layers, leading parts of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.model import Input, TextInput
from app.recipe.shrink import kept_layers, shrunk_teacher, teacher_depth
from app.recipe.students import Network, Shrink, Transformers, Vit
from app.recipe.task import CAUSAL_LM, EMBEDDING
from worker.errors import UserError
from worker.students.model import Model

_LAYER = re.compile(r"^(blocks\.|stages\.\d+\.|(?:.+\.)?(?:layers?|h)\.)(\d+)(\..+)$")
"""What comes before a layer's number, the number, and the rest, in the zoo's names and the library's."""
_FUSED = {
    "vit": re.compile(r".*\.attention\.qkv\.(weight|bias)$"),
    "gpt2": re.compile(r".*\.attn\.c_attn\.(weight|bias)$"),
}
"""Projections that give queries, keys and values side by side: along the first axis in the zoo, the last in GPT-2."""


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
    same = (student.config.task, student.config.outputs) == (teacher.config.task, teacher.config.outputs)
    fresh = student.config.task not in (CAUSAL_LM, EMBEDDING) and not same
    last, fused = _last_layers(student) if fresh else set(), _fused(student.config.architecture)
    for name, tensor in student.network.state_dict().items():
        if name in last:
            continue
        source = theirs[_renumbered(name, kept)]
        three = fused is not None and fused[0].match(name)
        tensor.copy_(_leading_of_three(source, tensor, fused[1]) if three and fused else _leading(source, tensor))


def _fused(network: Network) -> tuple[re.Pattern[str], int] | None:
    """Names of such projections, and the axis; none: the network has none."""
    if isinstance(network, Vit):
        return _FUSED["vit"], 0
    gpt2 = isinstance(network, Transformers) and network.model_type == "gpt2"
    return (_FUSED["gpt2"], -1) if gpt2 else None


def _renumbered(name: str, kept: Sequence[int]) -> str:
    found = _LAYER.match(name)
    return name if found is None else f"{found[1]}{kept[int(found[2])]}{found[3]}"


def _leading(source: Tensor, like: Tensor) -> Tensor:
    return source[tuple(slice(0, size) for size in like.shape)]


def _leading_of_three(source: Tensor, like: Tensor, axis: int) -> Tensor:
    """Queries, keys and values lie one after the other; of each the leading heads stay."""
    parts = zip(source.chunk(3, axis), like.chunk(3, axis), strict=True)
    return torch.cat([_leading(part, wanted) for part, wanted in parts], axis)


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
