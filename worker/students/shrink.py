"""Copies a teacher's weights to a student that is a smaller copy of it: some layers, some heads, and the leading part
of all other axes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Shrink
from app.recipe.students.derived import derived_teacher
from app.recipe.students.model import Input, TextInput
from app.recipe.students.shrink import LAYER, Heads, kept_heads, kept_layers, sized, teacher_depth
from worker.errors import UserError
from worker.students.model import Model

_NORM = re.compile(r"^(.+\.(q|k)_layernorm\.norms\.)(\d+)(\..+)$")
"""A norm of a single head."""
_QUERIES = re.compile(r".*\.(q_proj|q_lin|query|q_norm)\.(weight|bias)$")
_SHARED = re.compile(r".*\.([kv]_proj|[kv]_lin|key|value|k_norm)\.(weight|bias)$")
_JOINED = re.compile(r".*\.(o_proj|out_lin|attention\.(output\.)?dense|self_attn\.dense|attention\.out)\.weight$")
"""Output projection of the heads, which are along its second axis; in GPT-2 along the first."""
_JOINED_FIRST = re.compile(r".*\.attn\.c_proj\.weight$")
_FUSED = re.compile(r".*\.(attention\.qkv|qkv_proj)\.(weight|bias)$")
"""Joint projection to queries, keys and values, one after the other along the first axis; in GPT-2 along the last."""
_FUSED_LAST = re.compile(r".*\.attn\.c_attn\.(weight|bias)$")
_INTERLEAVED = re.compile(r".*\.query_key_value\.(weight|bias)$")
"""Joint projection to query, key and value of one head after the other."""
_GATED = re.compile(r".*\.gate_up_proj\.weight$")
"""Joint projection to the gates of a feed-forward layer, and then to its units."""


def inherit(student: Model, job: JobSpec, teachers: Mapping[str, Model]) -> Model:
    """Copy into `student` the weights of the teacher that it is a smaller copy of, in place; any other student is not
    changed.

    If teacher and student have different outputs, the student keeps its fresh last layer. Raises UserError if they have
    different tokens.
    """
    name = derived_teacher(job)
    if name is None or not isinstance(job.student, Shrink) or job.student.init == "fresh":
        return student
    teacher = teachers[name]
    _require_same_tokens(student, teacher)
    network = teacher.config.architecture
    wanted = sized(job.student, job, network)
    take_over(student, teacher, kept_layers(wanted, teacher_depth(network)), kept_heads(wanted, network))
    return student


@torch.no_grad()
def take_over(student: Model, teacher: Model, layers: Sequence[int], heads: Heads | None = None) -> None:
    """Copy layer `layers[i]` of `teacher` to layer i of `student`, with the given `heads`; none: it has no heads, or
    all are copied. Of all other weights the leading part along every axis is copied."""
    state = teacher.network.state_dict()
    same = (student.config.task, student.config.outputs) == (teacher.config.task, teacher.config.outputs)
    fresh = student.config.has_head and not same
    last = _last_layers(student) if fresh else set()
    for name, tensor in student.network.state_dict().items():
        if name not in last:
            source = state[_renumbered(name, layers, heads)]
            tensor.copy_(_kept(name, source, tensor, heads) if heads else _leading(source, tensor))


def _renumbered(name: str, layers: Sequence[int], heads: Heads | None) -> str:
    if found := LAYER.match(name):
        name = f"{found[1]}{layers[int(found[2])]}{found[3]}"
    if heads and (found := _NORM.match(name)):
        name = f"{found[1]}{(heads.queries if found[2] == 'q' else heads.shared)[int(found[3])]}{found[4]}"
    return name


def _leading(source: Tensor, like: Tensor) -> Tensor:
    return source[tuple(slice(0, size) for size in like.shape)]


def _kept(name: str, source: Tensor, like: Tensor, heads: Heads) -> Tensor:
    """The part of a teacher's weight that is copied to the student's weight of the same name."""
    axis = 1 if _JOINED.match(name) else -1 if _FUSED_LAST.match(name) else 0
    rows = _positions(name, source.shape[axis], like.shape[axis], heads)
    chosen = source if rows is None else source.index_select(axis, torch.tensor(rows, device=source.device))
    return _leading(chosen, like)


def _positions(name: str, size: int, left: int, heads: Heads) -> list[int] | None:
    """Positions to copy along the axis of heads or units, which has `size` positions in the teacher and `left` in the
    student; none: the leading ones."""
    queries, shared = _of_heads(heads.queries, heads.size), _of_heads(heads.shared, heads.size)
    if _FUSED.match(name) or _FUSED_LAST.match(name):
        keys = heads.of * heads.size
        values = keys + heads.of_shared * heads.size
        return [*queries, *(keys + position for position in shared), *(values + position for position in shared)]
    if _INTERLEAVED.match(name):
        return _of_heads(heads.queries, 3 * heads.size)
    if _GATED.match(name):
        return [*range(left // 2), *range(size // 2, size // 2 + left // 2)]
    if (_QUERIES.match(name) or _JOINED.match(name) or _JOINED_FIRST.match(name)) and size == heads.of * heads.size:
        return queries
    return shared if _SHARED.match(name) and size == heads.of_shared * heads.size else None


def _of_heads(heads: Sequence[int], size: int) -> list[int]:
    """All positions of these heads, each of which has `size`."""
    return [head * size + position for head in heads for position in range(size)]


def _last_layers(student: Model) -> set[str]:
    """Names of the last layer's weights."""
    last = [name for name, _ in student.network.named_parameters() if name.endswith(".weight")][-1]
    return {name for name in student.network.state_dict() if name.startswith(last.removesuffix("weight"))}


def _require_same_tokens(student: Model, teacher: Model) -> None:
    if student.input_key != teacher.input_key or not _same_tokens(student.config.input, teacher.config.input):
        raise UserError(
            "invalid_job",
            "the student can't copy the teacher's weights, because it has other tokens; accepted: the teacher's "
            "tokenizer, or init: fresh",
            "student.init",
        )


def _same_tokens(student: Input, teacher: Input) -> bool:
    """Whether both have the same tokens. Texts may be shorter than the teacher's, whose network may have a larger
    vocabulary."""
    if not isinstance(student, TextInput) or not isinstance(teacher, TextInput):
        return True
    fits = student.length <= teacher.length and student.vocabulary <= teacher.vocabulary
    return fits and (student.pad, student.separator) == (teacher.pad, teacher.separator)
