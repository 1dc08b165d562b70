"""What AdamP and SGDP share: on CUDA, all parameters take their step in a few launches of kernels of our own.

Everything else goes through torch's lists of tensors: processors, float64, parameters of which processes hold parts,
and layouts whose output channels do not lie in memory one after the other. State is the same either way, so that a
checkpoint may go from one to the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from worker.kernels.devices import HAS_TRITON
from worker.optimizers.base import MASTER, Foreach, State, laid_out
from worker.optimizers.rule import Rule
from worker.optimizers.tables import Pointers, TableRows, seen_in_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Projected(Foreach, ABC):
    """An optimizer that moves weights by a `Rule`."""

    AVERAGE: str
    """Key of the average of gradients in the state."""

    @abstractmethod
    def _rule(self, group: dict[str, Any]) -> Rule:
        """Of a group."""

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        quick, others = list[tuple[nn.Parameter, TableRows]](), list[nn.Parameter]()
        for parameter in parameters:
            seen = seen_in_rows(parameter) if runs_on_triton(parameter) else None
            if seen is None:
                others.append(parameter)
            else:
                quick.append((parameter, seen))
        if quick:
            self._launch(quick, group)
        if others:
            super()._step(others, group)

    def _launch(self, parameters: list[tuple[nn.Parameter, TableRows]], group: dict[str, Any]) -> None:
        from worker.optimizers.projected_kernels import launch  # Triton is there on Linux alone

        exact = torch.promote_types(parameters[0][0].dtype, torch.float32)
        batches: defaultdict[bool, list[tuple[TableRows, Pointers]]] = defaultdict(list)
        gradients = list[Tensor]()  # where they had to be laid out anew, nobody else holds them
        for parameter, seen in parameters:
            assert parameter.grad is not None  # or it would not be here
            gradients.append(laid_out(parameter.grad, parameter))
            found = self._pointers(parameter, gradients[-1], self._state_of(parameter, exact, group))
            batches[_aligned(seen, found)].append((seen, found))
        for aligned, batch in batches.items():
            launch(batch, self._rule(group), parameters[0][0], aligned)
        torch.autograd.graph.increment_version([parameter for parameter, _ in parameters])

    def _pointers(self, parameter: nn.Parameter, gradient: Tensor, state: State) -> Pointers:
        weight = state.get(MASTER, parameter)
        square, age = (state.get(name, weight) for name in ("exp_avg_sq", "step"))
        tensors = (weight, gradient, state[self.AVERAGE], square, age, parameter)
        return Pointers(*(tensor.data_ptr() for tensor in tensors))


def runs_on_triton(parameter: nn.Parameter) -> bool:
    """Whether the kernels are for it, if it is laid out in rows."""
    return HAS_TRITON and parameter.is_cuda and parameter.dtype in DTYPES and type(parameter) is nn.Parameter


def _aligned(seen: TableRows, found: Pointers) -> bool:
    """Whether four numbers can be read at a time."""
    return seen.length % 4 == 0 and all(place % 16 == 0 for place in found._replace(age=0))
