"""Processes that each hold a part of every weight (FSDP2, torch's `fully_shard`): of student, optimizer and teachers.

A module's weights are gathered when it runs and let go after it, so all ranks must run the same modules in the same
order. What only the first rank does (evaluate, export) needs whole weights, and each saves its own part: these *acts*
were agreed on before training, and the others help with them while they wait for the first one to decide how to go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from worker.distributed.nodes import bring
from worker.distributed.parts import Stored
from worker.distributed.ranks import DataParallel, Result, Tensors
from worker.students.model import Model

GO, LEAVE, ACTS = 0, 1, 2
"""What the first rank says: go on, leave, or from `ACTS` on the number of what all shall do."""


class FullyShardedDataParallel(DataParallel):
    """Weights are divided along their first dimension; gradients are summed and divided alike."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._mesh = init_device_mesh(device.type, (self.size,))
        self._acts: list[Callable[[], object]] = []

    def least(self, count: int) -> int:
        """A rank that ran one micro-batch more than the others would wait for them for ever."""
        fewest = torch.tensor(count)
        dist.all_reduce(fewest, dist.ReduceOp.MIN)
        return int(fewest)

    def agree(self, leave: bool) -> bool:
        """What the first rank has decided; until then the others do with it what it wants."""
        if self.first:
            self._say(LEAVE if leave else GO)
            return leave
        while (said := self._hear()) >= ACTS:
            self._acts[said - ACTS]()
        return said == LEAVE

    def wrap(self, whole: nn.Module) -> nn.Module:
        """What lies outside of blocks is whole from the first layer to the end of the backward pass, since a loss may
        look at the last layer's weight, which may be the first layer's."""
        self.split(whole)
        return whole

    def split(self, model: nn.Module) -> None:
        """Block by block, so that no more than a block's weights are whole at a time."""
        for block in _blocks(model):
            self._split(block)
        self._split(model)
        if isinstance(model, Model) and model.config.predicts_tokens:
            register_fsdp_forward_method(model, "forward_hidden")

    def part(self, whole: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        assert isinstance(whole, FSDPModule)
        whole.set_requires_gradient_sync(last)
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def own(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def place(self, stored: Stored, own: Tensor) -> Tensor:
        if not isinstance(own, DTensor) or stored.shape != own.shape:
            return stored.read()
        shape, offset = compute_local_shape_and_global_offset(own.shape, own.device_mesh, own.placements)
        rows = stored.read(offset[0], offset[0] + shape[0]).to(own.device)
        return DTensor.from_local(
            rows, own.device_mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride()
        )

    def mine(self, tensors: Tensors) -> Tensors:
        """Its rows; what nobody has divided is the first one's to save."""
        mine = {name: self.own(tensor) for name, tensor in tensors.items() if self.first or isinstance(tensor, DTensor)}
        return {name: tensor for name, tensor in mine.items() if self.first or len(tensor)}

    def gather_files(self, files: list[Path]) -> None:
        for number in range(int(os.environ.get("LOCAL_WORLD_SIZE", self.size)), self.size):
            if self.number in (0, number):
                bring(files[number], number)

    def all_gather(self, value: Tensor) -> list[Tensor]:
        said = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(said, value)
        return said

    def collectively(self, act: Callable[[], Result]) -> Callable[[], Result]:
        number = len(self._acts)
        self._acts.append(act)

        def call() -> Result:
            self._say(ACTS + number)
            return act()

        return call

    def offer_model(self, get: Callable[[], Model]) -> Callable[[], Model]:
        gather = self.collectively(lambda: self._gather(get().state_dict()))

        def rebuild() -> Model:
            model = get()
            copy = Model(model.config, input_key=model.input_key)
            copy.load_state_dict(gather())
            return copy.to(next(model.parameters()).device).eval()

        return rebuild

    def serve(self) -> None:
        self.agree(leave=False)

    def dismiss(self) -> None:
        self.agree(leave=False)

    def _split(self, module: nn.Module) -> None:
        """Sums are sent as sums: every rank has divided by the whole count already."""
        sharded = fully_shard(module, mesh=self._mesh)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)

    def _say(self, what: int) -> None:
        dist.broadcast(torch.tensor(what), src=0)

    def _hear(self) -> int:
        said = torch.tensor(GO)
        dist.broadcast(said, src=0)
        return int(said)

    def _gather(self, divided: Tensors) -> Tensors:
        """Whole tensors on the CPU of the first rank; one at a time on the others."""
        gathered = {}
        for name, tensor in divided.items():
            full = self.whole(tensor)
            if self.first:
                gathered[name] = full.cpu()
        return gathered


def _blocks(model: nn.Module) -> list[nn.Module]:
    """What lies in a list or a sequence and has parts of its own, inner ones first."""
    rows = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    blocks = [block for row in rows for block in row if any(block.children()) and any(True for _ in block.parameters())]
    return list(dict.fromkeys(reversed(blocks)))
