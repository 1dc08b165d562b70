"""Converts a vision transformer with layer norms into an equal one with root mean square norms (2305.14858).

A layer norm of tokens of mean zero is a root mean square norm, so

1. scale and offset of each norm are folded into the linear layer behind it, W diag(g) and b + W o;
2. all that is added to the tokens, embeddings and output projections, is given a mean of zero over their numbers;
3. for `pre-crmsnorm`, the last number of a token, minus the sum of the others, is left out: the layers that write
   tokens lose their last row, and those that read them subtract their last column from the others.

Computed in float64. State dicts have the names of this project's `vit`; D is the width of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Transformers
from app.recipe.students.conversion import Convert
from app.recipe.students.derived import derived_teacher
from worker.errors import UserError
from worker.students.model import Model

State = dict[str, Tensor]
EMBEDDINGS = {"class_token": -1, "positions": -1, "embed.weight": 0, "embed.bias": 0}
"""Embeddings, and their axis of the numbers of a token."""
_LIBRARY = {
    "vit.embeddings.cls_token": "class_token",
    "vit.embeddings.position_embeddings": "positions",
    "vit.embeddings.patch_embeddings.projection": "embed",
    "vit.layernorm": "norm",
    "classifier": "head",
}
_LIBRARY_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attention.out",
    "mlp.fc1": "feed_forward.0",
    "mlp.fc2": "feed_forward.2",
}
"""Names of the Transformers library, and those of this project."""


def convert(student: Model, job: JobSpec, teachers: Mapping[str, Model]) -> Model:
    """Give `student` the weights with which it equals the teacher that it is converted from, in place; any other
    student is not changed. Raises UserError if their outputs differ."""
    name = derived_teacher(job)
    if name is None or not isinstance(job.student, Convert):
        return student
    teacher = teachers[name]
    if (student.config.task, student.config.outputs) != (teacher.config.task, teacher.config.outputs):
        found = f"{teacher.config.outputs} outputs for {teacher.config.task}"
        message = f"a converted student has the outputs of its teacher, which are {found}, and the job has others"
        raise UserError("invalid_job", f"{message}; accepted: the teacher's", "student.architecture")
    student.network.load_state_dict(weights_of(teacher, job.student, student.network.state_dict()))
    return student


def weights_of(teacher: Model, spec: Convert, own: State) -> State:
    """The weights of the converted network, in float64; `own` has its fresh ones, of which the scales of norms stay."""
    state = recentred(folded(vit_state(teacher)))
    return own | (compressed(state) if spec.to == "pre-crmsnorm" else state)


def vit_state(teacher: Model) -> State:
    """The weights of a `vit`, of this project or of the Transformers library, in float64, by this project's names."""
    state = {name: tensor.detach().cpu().double() for name, tensor in teacher.network.state_dict().items()}
    return _from_library(state) if isinstance(teacher.config.architecture, Transformers) else state


def _from_library(state: State) -> State:
    found = {}
    for name, tensor in state.items():
        if name.startswith("vit.layers."):
            number, _, rest = name.removeprefix("vit.layers.").partition(".")
            found[f"blocks.{number}.{_renamed(rest, _LIBRARY_BLOCK)}"] = tensor
        else:
            found[_renamed(name, _LIBRARY)] = tensor
    for block in _blocks(found):
        for part in ("weight", "bias"):
            joined = [found.pop(f"{block}attention.{axis}_proj.{part}", None) for axis in "qkv"]
            given = [each for each in joined if each is not None]
            width = found[f"{block}norm1.weight"].shape
            found[f"{block}attention.qkv.{part}"] = torch.cat(given) if given else torch.zeros(3 * width[0]).double()
    return found


def _renamed(name: str, names: Mapping[str, str]) -> str:
    return next((ours + name.removeprefix(theirs) for theirs, ours in names.items() if name.startswith(theirs)), name)


def folded(state: State) -> State:
    """`state` without scales and offsets of norms, which the layers behind them have instead."""
    found = dict(state)
    for norm, layer in _readers(state):
        scale, offset = found.pop(f"{norm}.weight"), found.pop(f"{norm}.bias")
        weight = state[f"{layer}.weight"]
        found[f"{layer}.weight"] = weight * scale
        found[f"{layer}.bias"] = state[f"{layer}.bias"] + weight @ offset
    return found


def recentred(state: State) -> State:
    """`state` with a mean of zero of all that is added to the tokens."""
    axes = _written(state)
    return state | {name: state[name] - state[name].mean(axis, keepdim=True) for name, axis in axes.items()}


def compressed(state: State) -> State:
    """A recentred `state` for tokens without their last number."""
    written = {name: state[name].narrow(axis, 0, state[name].shape[axis] - 1) for name, axis in _written(state).items()}
    layers = [f"{layer}.weight" for _, layer in _readers(state)]
    return state | written | {name: state[name][:, :-1] - state[name][:, -1:] for name in layers}


def _written(state: State) -> dict[str, int]:
    """Tensors that are added to the tokens, or write to them, and their axis of the numbers of a token."""
    layers = [f"{block}{name}" for block in _blocks(state) for name in ("attention.out", "feed_forward.2")]
    return EMBEDDINGS | {f"{layer}.{part}": 0 for layer in layers for part in ("weight", "bias")}


def _readers(state: State) -> Iterator[tuple[str, str]]:
    """Norms, and the linear layers behind them."""
    for block in _blocks(state):
        yield f"{block}norm1", f"{block}attention.qkv"
        yield f"{block}norm2", f"{block}feed_forward.0"
    yield "norm", "head"


def _blocks(state: State) -> list[str]:
    """Prefixes of the blocks."""
    return list(dict.fromkeys(f"blocks.{name.split('.')[1]}." for name in state if name.startswith("blocks.")))
