"""The processes that train one job together: each computes its share of every batch, and all take the same step.

A rank divides by the count of the whole batch, which is summed over all ranks, and gradients are summed, so that the
step is the one that a single process would have taken. Batch norm uses the share of its rank only, as it does with
`accumulate`, power and unified norms that of all ranks; dropout is drawn on every rank separately.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from worker.data.randomness import derive_seed
from worker.distributed.parts import Stored
from worker.students.model import Model

Tensors = dict[str, Tensor]
Result = TypeVar("Result")
TIMEOUT = timedelta(days=7)
"""Longest wait of a rank for another, which may be evaluating. The launcher detects at once that one has died."""


class SingleProcess:
    """A single process; base of the groups of several."""

    number = 0
    """Rank of this process, from 0; the first one reports, evaluates, saves and exports."""
    size = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reports for all."""
        return self.number == 0

    @property
    def first_here(self) -> bool:
        """Whether this is the first process of its machine."""
        return True

    @property
    def machine(self) -> int:
        """Number of this machine among those of the job."""
        return 0

    def barrier(self) -> None:
        """Wait until all ranks have called this."""

    def share(self, rows: Tensor) -> Tensor:
        """This rank's share of the rows (B, ...) of a batch, of any dtype."""
        return rows

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value`, of any shape and dtype, over all ranks."""
        return value

    def sum_all(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums of floating scalars over all ranks, which must have the same names on each."""
        return values

    def agree(self, leave: bool) -> bool:
        """The value of `leave` on the first rank."""
        return leave

    def begin_step(self, seed: int, step: int) -> None:
        """Called before every step of a job with this seed."""

    def min_count(self, count: int) -> int:
        """The least `count` of all ranks: the number of micro-batches that each can split its share into."""
        return count

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose call returns a share of the loss, wrapped so that gradients are the same on all ranks."""
        return module

    def shard(self, model: nn.Module) -> None:
        """Divide a frozen model between the ranks, where weights are sharded."""

    def micro_batch(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch of a step; gradients are exchanged with the `last` one."""
        return nullcontext()

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor of any shape that may be sharded, in its dtype; called by all ranks."""
        return tensor

    def local(self, tensor: Tensor) -> Tensor:
        """This rank's shard of a tensor of any shape and dtype, in the same memory; all of it if it is not sharded."""
        return tensor

    def load(self, stored: Stored, target: Tensor) -> Tensor:
        """Read a stored tensor, as this rank holds it, to replace `target`, which has the same shape and dtype."""
        return stored.read()

    def to_save(self, tensors: Tensors) -> Tensors:
        """This rank's share of a checkpoint's tensors, of any shapes and dtypes, by name."""
        return tensors

    def gather_files(self, files: list[Path]) -> None:
        """Move the files of ranks on other machines, one of `files` each, to the first rank's machine."""

    def all_gather(self, value: Tensor) -> list[Tensor]:
        """`value` of each rank that saves a share; these must all call it with the same shape and dtype."""
        return [value]

    def collectively(self, act: Callable[[], Result]) -> Callable[[], Result]:
        """A function for the first rank that runs `act` on all ranks that hold shards of what it needs.

        All ranks must register the same acts in the same order.
        """
        return act

    def offer_model(self, get: Callable[[], Model]) -> Callable[[], Model]:
        """`get` for the first rank, returning a model that it can run without the other ranks."""
        return get

    def serve(self) -> None:
        """Run collective acts for the first rank until it dismisses the others."""

    def dismiss(self) -> None:
        """Called by the first rank when it no longer needs the others."""


class DataParallel(SingleProcess):
    """Every rank has a copy of the student, and gradients are summed while the backward pass runs."""

    def __init__(self) -> None:
        self.number, self.size = dist.get_rank(), dist.get_world_size()

    @property
    def first_here(self) -> bool:
        return int(os.environ.get("LOCAL_RANK", self.number)) == 0

    @property
    def machine(self) -> int:
        return int(os.environ.get("GROUP_RANK", 0))

    def barrier(self) -> None:
        self.sum(torch.zeros(()))

    def share(self, rows: Tensor) -> Tensor:
        """Nearly equal shares of rows (B, ...) of any dtype, in their order. If there are fewer rows than ranks, each
        takes all, and they are counted as often."""
        return rows if len(rows) < self.size else rows.tensor_split(self.size)[self.number]

    def sum(self, value: Tensor) -> Tensor:
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    def sum_all(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if not values:
            return values
        return dict(zip(values, self.sum(torch.stack(list(values.values()))).unbind(), strict=True))

    def agree(self, leave: bool) -> bool:
        """The value of the first rank; broadcast on the CPU, so that no rank waits for its device."""
        decision = torch.tensor(leave)
        dist.broadcast(decision, src=0)
        return bool(decision)

    def min_count(self, count: int) -> int:
        """The least `count` of all ranks: one that ran one micro-batch more would wait for the others for ever, where
        layers exchange statistics or weights."""
        fewest = torch.tensor(count)
        dist.all_reduce(fewest, dist.ReduceOp.MIN)
        return int(fewest)

    def begin_step(self, seed: int, step: int) -> None:
        """Seed dropout by seed, step and rank, so that a resumed run draws the same masks."""
        torch.manual_seed(derive_seed(seed, "step", step, self.number))

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` in DistributedDataParallel.

        Losses on activations, and stages that train only some of the parameters, leave parameters without a gradient.
        These are searched for in every step, which costs a walk over the graph of the loss. Buffers are not exchanged:
        the batch norm statistics that are evaluated and exported are the first rank's.
        """
        with warnings.catch_warnings():  # torch 2.13 renamed an argument, and 2.11 lacks the new name
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(
                module, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
            )
        wrapped.register_comm_hook(None, lambda state, bucket: _sum_bucket(bucket.buffer()))
        return wrapped

    def micro_batch(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        assert isinstance(module, DistributedDataParallel)
        return nullcontext() if last else module.no_sync()


SINGLE_PROCESS = SingleProcess()


def is_lost(error: BaseException) -> bool:
    """Whether `error` means that another rank ended: Gloo raises a plain RuntimeError, recognised by its text."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _sum_bucket(gradients: Tensor) -> torch.futures.Future[Tensor]:
    """Sum gradients over the ranks. DDP's default would divide by their number, but each loss share is already divided
    by the count of the whole batch."""
    summed: torch.futures.Future[Tensor] = dist.all_reduce(gradients, async_op=True).get_future().then(_first)
    return summed


def _first(done: torch.futures.Future[list[Tensor]]) -> Tensor:
    return done.value()[0]
