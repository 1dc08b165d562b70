"""The processes that train one job together: each takes its share of every batch, and all take the same step.

A rank divides by the count of the whole batch, which is summed over all, and gradients are summed, so that the step is
the one that a single process would have taken. Batch norm sees the share of its rank alone, as it does with
`accumulate`, and dropout draws on every rank for itself.
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
PATIENCE = timedelta(days=7)
"""Longest wait of a rank for another, which may be evaluating. Whoever dies is noticed by the launcher at once."""


class SingleProcess:
    """A single process, which has nobody to agree with."""

    number = 0
    """Of this process, from 0; the first one speaks, evaluates, saves and exports."""
    size = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks for all."""
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
        """Wait until everybody is here."""

    def share(self, rows: Tensor) -> Tensor:
        """This rank's part of the rows (B, ...) of a batch."""
        return rows

    def sum(self, value: Tensor) -> Tensor:
        """The sum of everybody's `value`."""
        return value

    def sum_all(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums of everybody's scalars, which have the same names on all ranks."""
        return values

    def agree(self, leave: bool) -> bool:
        """What the first rank has decided."""
        return leave

    def begin(self, seed: int, step: int) -> None:
        """Called before every step of a job with this seed."""

    def least(self, count: int) -> int:
        """In how many micro-batches a step is taken, of those that everybody could make of its share."""
        return count

    def wrap(self, whole: nn.Module) -> nn.Module:
        """The module whose call gives a share of the loss, so that gradients become the same everywhere."""
        return whole

    def split(self, model: nn.Module) -> None:
        """Divide a model that learns nothing between the ranks, where they hold parts of models."""

    def part(self, whole: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Around one of the micro-batches of a step; gradients are exchanged with the `last` one."""
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor that ranks may hold parts of; called by all of them."""
        return tensor

    def own(self, tensor: Tensor) -> Tensor:
        """What this rank holds of a tensor, in the same memory."""
        return tensor

    def place(self, stored: Stored, own: Tensor) -> Tensor:
        """What this rank holds of a tensor that is to replace `own`."""
        return stored.read()

    def mine(self, tensors: Tensors) -> Tensors:
        """What this rank has to save of the tensors that make its next step."""
        return tensors

    def gather_files(self, files: list[Path]) -> None:
        """Have what ranks on other machines wrote, one of `files` each, lie beside what the first one wrote."""

    def all_gather(self, value: Tensor) -> list[Tensor]:
        """What each rank that saves something says; all of them wait for it."""
        return [value]

    def collectively(self, act: Callable[[], Result]) -> Callable[[], Result]:
        """`act` for the first rank to call, with all ranks that hold parts of what it needs. They say so for the same
        acts, in the same order."""
        return act

    def offer_model(self, get: Callable[[], Model]) -> Callable[[], Model]:
        """`get` for the first rank, giving a model that it can run without the others."""
        return get

    def serve(self) -> None:
        """Help the first rank until it has no more use for the others."""

    def dismiss(self) -> None:
        """Called by the first rank when it has no more use for the others."""


class DataParallel(SingleProcess):
    """Every rank has the whole student, and gradients are summed while the backward pass runs."""

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
        """Nearly equal parts in their order; of fewer rows than ranks everybody takes all, and the count says so."""
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
        """On the CPU, so that no rank waits for its device."""
        said = torch.tensor(leave)
        dist.broadcast(said, src=0)
        return bool(said)

    def begin(self, seed: int, step: int) -> None:
        """Dropout as a function of seed, step and rank, so that a resumed run drops what it would have dropped."""
        torch.manual_seed(derive_seed(seed, "step", step, self.number))

    def wrap(self, whole: nn.Module) -> nn.Module:
        """Losses that look at activations, and stages that train only some of the parameters, leave others without a
        gradient: they are looked for in every step, which costs a walk over the graph of the loss.

        Buffers stay each rank's own: the statistics of batch norm that are evaluated and exported are the first's.
        """
        with warnings.catch_warnings():  # torch 2.13 has a new name for it, which 2.11 does not know
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(
                whole, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
            )
        wrapped.register_comm_hook(None, lambda state, bucket: _sum_bucket(bucket.buffer()))
        return wrapped

    def part(self, whole: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        assert isinstance(whole, DistributedDataParallel)
        return nullcontext() if last else whole.no_sync()


SINGLE_PROCESS = SingleProcess()


def is_lost(error: BaseException) -> bool:
    """Whether `error` means that another rank has gone: Gloo says so in a plain RuntimeError, known by its text."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _sum_bucket(gradients: Tensor) -> torch.futures.Future[Tensor]:
    """DDP's own average would be the gradient divided by the ranks; each has divided by the whole count already."""
    summed: torch.futures.Future[Tensor] = dist.all_reduce(gradients, async_op=True).get_future().then(_first)
    return summed


def _first(done: torch.futures.Future[list[Tensor]]) -> Tensor:
    return done.value()[0]
