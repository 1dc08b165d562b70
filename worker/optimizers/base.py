"""Base of this project's optimizers: many tensors in one call, and arithmetic in at least float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

CACHED = 1 << 18
"""Elements that a CPU updates at a time: their weights, gradients and moments fit its caches."""
DIVIDED = 1 << 24
"""Elements of sharded weights that are gathered at a time."""
MASTER = "master"
"""Key of the float32 weights of a parameter in 16 bits."""
State = dict[str, Tensor]


@runtime_checkable
class Listener(Protocol):
    """An optimizer whose steps depend on the gradient at the student's outputs."""

    def listen(self, outputs: Tensor) -> None:
        """Called with the outputs (…, C), floating, of every part of a batch, before the backward pass."""
        ...


class Foreach(torch.optim.Optimizer, ABC):
    """An optimizer that updates lists of tensors.

    Parameters without a gradient are skipped and have no state. State and arithmetic are float32, or float64 for
    parameters in float64. A parameter in 16 bits is the rounded copy of float32 weights in its state (`master`),
    because most steps are smaller than its last bit. The state has tensors alone.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as torch's own
        """Take one step; `closure`, if given, recomputes loss and gradients, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in self._bunches(group["params"]):
                self._step(parameters, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but without rounding the state of parameters in 16 bits."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            for key, value in state_dict["state"].get(index, {}).items():
                self.state[parameter][key] = laid_out(value.detach().clone().to(parameter.device), parameter)

    @abstractmethod
    def _fresh_state(self, weight: Tensor, group: dict[str, Any]) -> State:
        """State of a parameter, whose `weight` is float32 or float64 of any shape, before its first step."""

    @abstractmethod
    def _update(
        self, weights: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> None:
        """Update `weights` and `states` in place; all tensors are float32 or float64, of the parameters' shapes."""

    def _bunches(self, parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
        """Parameters with a gradient, by device and dtype; on a CPU as many as fit its caches."""
        alike: defaultdict[Hashable, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            if parameter.grad is not None:
                alike[parameter.device, parameter.dtype].append(parameter)
        for members in alike.values():
            size = DIVIDED if _is_sharded(members[0]) else CACHED if members[0].device.type == "cpu" else None
            yield from [members] if size is None else _cut(members, size)

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        if _is_sharded(parameters[0]):
            from worker.optimizers.divided import step_on_whole  # its import is slow

            return step_on_whole(parameters, self.state, lambda whole: self._step(whole, group))
        exact = torch.promote_types(parameters[0].dtype, torch.float32)
        rounded = parameters[0].dtype != exact
        states = [self._state_of(parameter, exact, group) for parameter in parameters]
        weights = [state[MASTER] for state in states] if rounded else list[Tensor](parameters)
        gradients = [laid_out(one.grad.to(exact), one) for one in parameters if one.grad is not None]
        self._update(weights, gradients, states, group)
        if rounded:
            torch._foreach_copy_(list[Tensor](parameters), weights)

    def _state_of(self, parameter: nn.Parameter, exact: torch.dtype, group: dict[str, Any]) -> State:
        if parameter not in self.state:
            weight = parameter.detach().to(exact)
            state = self._fresh_state(weight, group)
            if parameter.dtype != exact:
                state[MASTER] = weight
            if state:
                self.state[parameter] = state
            return state
        found: State = self.state[parameter]
        return found


def by_shape(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Indices of the tensors of each shape; any shapes and dtypes."""
    alike: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        alike[tensor.shape].append(index)
    yield from alike.values()


def stacked(tensors: Sequence[Tensor], members: Sequence[int]) -> Tensor:
    """The tensors at `members`, of equal shape (…) and dtype, as one (members, …); a single one is not copied."""
    if len(members) == 1:
        return tensors[members[0]].unsqueeze(0)
    return torch.stack([tensors[index] for index in members])


def laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor`, of any shape and dtype, with the strides of its parameter if it has its shape: fused kernels on a CPU
    ignore strides."""
    if tensor.shape != parameter.shape or tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def _is_sharded(parameter: nn.Parameter) -> bool:
    """Whether the parameter is sharded over processes: it is of another type then."""
    return type(parameter) is not nn.Parameter


def _cut(parameters: list[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    bunch, size = list[nn.Parameter](), 0
    for parameter in parameters:
        if bunch and size + parameter.numel() > most:
            yield bunch
            bunch, size = [], 0
        bunch.append(parameter)
        size += parameter.numel()
    yield bunch
