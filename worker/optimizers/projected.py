"""Base of AdamP and SGDP: on CUDA, all parameters are updated in a few launches of this project's kernels.

Everything else is updated by torch's operations on lists of tensors: on a CPU, in float64, sharded parameters, and
layouts whose output channels are not contiguous in memory. The state is the same for both, so that a checkpoint can be
loaded by either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from worker.kernels.devices import HAS_TRITON
from worker.optimizers.base import MASTER, Foreach, State, laid_out
from worker.optimizers.rule import UpdateRule
from worker.optimizers.tables import Pointers, TableRows, table_rows_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Projected(Foreach, ABC):
    """An optimizer that updates weights by a `UpdateRule`."""

    AVERAGE: str
    """Key of the average of gradients in the state."""

    @abstractmethod
    def _rule(self, group: dict[str, Any]) -> UpdateRule:
        """The rule of a group."""

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        quick, others = list[tuple[nn.Parameter, TableRows]](), list[nn.Parameter]()
        for parameter in parameters:
            layout = table_rows_of(parameter) if runs_on_triton(parameter) else None
            if layout is None:
                others.append(parameter)
            else:
                quick.append((parameter, layout))
        if quick:
            self._launch(quick, group)
        if others:
            super()._step(others, group)

    def _launch(self, parameters: list[tuple[nn.Parameter, TableRows]], group: dict[str, Any]) -> None:
        from worker.optimizers.projected_kernels import launch  # Triton is available on Linux alone

        exact = torch.promote_types(parameters[0][0].dtype, torch.float32)
        batches: defaultdict[bool, list[tuple[TableRows, Pointers]]] = defaultdict(list)
        gradients = list[Tensor]()  # keeps copies with new strides alive
        for parameter, layout in parameters:
            assert parameter.grad is not None  # parameters without a gradient were skipped
            gradients.append(laid_out(parameter.grad, parameter))
            found = self._pointers(parameter, gradients[-1], self._state_of(parameter, exact, group))
            batches[_aligned(layout, found)].append((layout, found))
        for aligned, batch in batches.items():
            launch(batch, self._rule(group), parameters[0][0], aligned)
        torch.autograd.graph.increment_version([parameter for parameter, _ in parameters])

    def _pointers(self, parameter: nn.Parameter, gradient: Tensor, state: State) -> Pointers:
        weight = state.get(MASTER, parameter)
        square, age = (state.get(name, weight) for name in ("exp_avg_sq", "step"))
        tensors = (weight, gradient, state[self.AVERAGE], square, age, parameter)
        return Pointers(*(tensor.data_ptr() for tensor in tensors))


def runs_on_triton(parameter: nn.Parameter) -> bool:
    """Whether the kernels support the parameter, if its rows are contiguous."""
    return HAS_TRITON and parameter.is_cuda and parameter.dtype in DTYPES and type(parameter) is nn.Parameter


def _aligned(layout: TableRows, found: Pointers) -> bool:
    """Whether four numbers can be read at a time."""
    return layout.length % 4 == 0 and all(place % 16 == 0 for place in found._replace(age=0))
