"""Steps on sharded weights (DTensors): this project's optimizers need whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

State = dict[str, Tensor]


def step_on_whole(
    parameters: Sequence[nn.Parameter], states: dict[Tensor, State], step: Callable[[list[nn.Parameter]], None]
) -> None:
    """Apply `step` to whole copies of `parameters`, of any shape and floating dtype, with whole gradients and `states`;
    each process stores its shard of the result.

    All processes do the same, and must call it with the same parameters. It takes memory for as many whole tensors, and
    the time of the step on every process.
    """
    wholes = [_whole(parameter, states) for parameter in parameters]
    step(wholes)
    for parameter, whole in zip(parameters, wholes, strict=True):
        parameter.copy_(_part(whole.detach(), parameter))
        if whole in states:
            states[parameter] = {key: _part(value, parameter) for key, value in states.pop(whole).items()}


def _whole(parameter: nn.Parameter, states: dict[Tensor, State]) -> nn.Parameter:
    copy = nn.Parameter(_full(parameter.detach()), requires_grad=False)
    assert parameter.grad is not None
    copy.grad = _full(parameter.grad)
    if parameter in states:
        states[copy] = {key: _full(value) for key, value in states[parameter].items()}
    return copy


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part(value: Tensor, like: Tensor) -> Tensor:
    """This process's shard of `value`, if it has the shape of `like`."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
