"""Processes that each hold a shard of every weight (FSDP2, torch's `fully_shard`): of student, optimizer and teachers.

A module's weights are gathered when it runs and freed after it, so all ranks must run the same modules in the same
order. Evaluation and export, which only the first rank does, need full weights, and each rank saves its own shard.
These collective *acts* are registered before training, and the other ranks take part in them while they wait for the
first one's decision whether to continue.
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

from worker.distributed.nodes import move_file
from worker.distributed.parts import Stored
from worker.distributed.ranks import DataParallel, Result, Tensors
from worker.students.model import Model

GO, LEAVE, ACTS = 0, 1, 2
"""Codes that the first rank broadcasts: continue, leave, or from `ACTS` on the number of a collective act."""


class FullyShardedDataParallel(DataParallel):
    """Weights are divided along their first dimension; gradients are summed and divided alike."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._mesh = init_device_mesh(device.type, (self.size,))
        self._acts: list[Callable[[], object]] = []

    def agree(self, leave: bool) -> bool:
        """The value of the first rank; until it is received, the others run the acts that the first rank requests."""
        if self.first:
            self._send(LEAVE if leave else GO)
            return leave
        while (code := self._receive()) >= ACTS:
            self._acts[code - ACTS]()
        return code == LEAVE

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module`, sharded in place.

        Weights outside of blocks are gathered from the first layer to the end of the backward pass, since a loss may
        use the last layer's weight, which may be shared with the first layer.
        """
        self.shard(module)
        return module

    def shard(self, model: nn.Module) -> None:
        """Shard `model` in place, block by block, so that only one block's weights are gathered at a time."""
        for block in _blocks(model):
            self._shard(block)
        self._shard(model)
        if isinstance(model, Model) and model.config.predicts_tokens:
            register_fsdp_forward_method(model, "forward_hidden")
        if isinstance(model, Model) and model.codebook is not None:
            register_fsdp_forward_method(model, "forward_codes")

    def micro_batch(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        assert isinstance(module, FSDPModule)
        module.set_requires_gradient_sync(last)
        return nullcontext()

    def full_tensor(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def load(self, stored: Stored, target: Tensor) -> Tensor:
        if not isinstance(target, DTensor) or stored.shape != target.shape:
            return stored.read()
        shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
        rows = stored.read(offset[0], offset[0] + shape[0]).to(target.device)
        return DTensor.from_local(
            rows, target.device_mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride()
        )

    def to_save(self, tensors: Tensors) -> Tensors:
        """This rank's shards (rows) in their dtypes; tensors of any shape that are not sharded are saved by the
        first."""
        own = {
            name: self.local(tensor) for name, tensor in tensors.items() if self.first or isinstance(tensor, DTensor)
        }
        return {name: tensor for name, tensor in own.items() if self.first or len(tensor)}

    def gather_files(self, files: list[Path]) -> None:
        for number in range(int(os.environ.get("LOCAL_WORLD_SIZE", self.size)), self.size):
            if self.number in (0, number):
                move_file(files[number], number)

    def all_gather(self, value: Tensor) -> list[Tensor]:
        values = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(values, value)
        return values

    def collectively(self, act: Callable[[], Result]) -> Callable[[], Result]:
        number = len(self._acts)
        self._acts.append(act)

        def call() -> Result:
            self._send(ACTS + number)
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

    def _shard(self, module: nn.Module) -> None:
        """Shard one module. Gradients are summed, not averaged: each loss share is divided by the whole batch's
        count."""
        sharded = fully_shard(module, mesh=self._mesh)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)

    def _send(self, code: int) -> None:
        dist.broadcast(torch.tensor(code), src=0)

    def _receive(self) -> int:
        code = torch.tensor(GO)
        dist.broadcast(code, src=0)
        return int(code)

    def _gather(self, sharded: Tensors) -> Tensors:
        """Full tensors on the CPU of the first rank; the others hold one at a time."""
        gathered = {}
        for name, tensor in sharded.items():
            full = self.full_tensor(tensor)
            if self.first:
                gathered[name] = full.cpu()
        return gathered


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Modules with children in a `ModuleList` or `Sequential`, inner ones first."""
    rows = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    blocks = [block for row in rows for block in row if any(block.children()) and any(True for _ in block.parameters())]
    return list(dict.fromkeys(reversed(blocks)))
