"""Loss functions on the same inputs: values, gradients, and CPU time per call with its backward pass."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Jsd, Kd, LossSpec
from bench.peers.absence import why
from bench.peers.ground import SEED
from worker.kernels.linear import HiddenTeacher, linear_distillation
from worker.kernels.spec import RowSpec
from worker.losses import TERMS
from worker.losses.base import LossInputs
from worker.losses.divergences import divergence_of

SCALE = 3.0
"""Deviation of the logits: softmaxes that are neither flat nor one-hot."""
WIDTH = 64
"""Size of the hidden states for a loss that includes the head."""

Side = Sequence[Tensor]
"""Logits (rows, classes); or hidden states (rows, WIDTH) and a head (classes, WIDTH)."""
Loss = Callable[[Side, Side], Tensor]
"""A loss of student's and teacher's inputs, as the mean over the rows."""


class Shape(NamedTuple):
    """Shape of the logits."""

    rows: int
    classes: int

    def __str__(self) -> str:
        return f"{self.rows} × {self.classes}"


class Pair(NamedTuple):
    """One loss, in this trainer and in a peer."""

    what: str
    peer: str
    ours: LossSpec
    load: Callable[[], Loss]
    """Imports the peer's loss; raises if it is not available."""
    with_head: bool = False
    """Whether the peer's loss computes the logits."""


class Compared(NamedTuple):
    """Comparison of this project's loss with the peer's."""

    pair: Pair
    shape: Shape
    value_gap: float
    """Relative difference."""
    gradient_gap: float
    """Largest difference, as a share of the largest entry of the peer's gradient."""
    ours: list[float]
    """Seconds of CPU time of each call, in turn with the peer's."""
    theirs: list[float]


class Missing(NamedTuple):
    """A comparison that could not be made."""

    pair: Pair
    why: str


def compare(shapes: Sequence[Shape], calls: int, pairs: Sequence[Pair] | None = None) -> Iterator[Compared | Missing]:
    """Every pair at every shape, with repeated calls of each."""
    for pair in pairs or PAIRS:
        try:
            theirs = pair.load()
            for shape in shapes:
                yield _compare(pair, theirs, shape, calls)
        except Exception as error:  # a library may raise anything if it can't run
            yield Missing(pair, why(error))


def _compare(pair: Pair, theirs: Loss, shape: Shape, calls: int) -> Compared:
    ours: Loss = partial(at_the_last_layer if pair.with_head else mean_of_rows, pair.ours)
    draw = torch.Generator().manual_seed(SEED)
    student, teacher = _side(shape, pair.with_head, draw), _side(shape, pair.with_head, draw)
    value, gradients = _differentiate(ours, student, teacher)
    expected, references = _differentiate(theirs, student, teacher)
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(calls):
        for seconds, loss in zip(taken, (ours, theirs), strict=True):
            begun = time.process_time()
            _differentiate(loss, student, teacher)
            seconds.append(time.process_time() - begun)
    gaps = [float((g - r).abs().max() / r.abs().max()) for g, r in zip(gradients, references, strict=True)]
    return Compared(pair, shape, abs(value / expected - 1), max(gaps), *taken)


def mean_of_rows(spec: LossSpec, student: Side, teacher: Side) -> Tensor:
    """The term as the objective computes it."""
    labels = torch.zeros(len(student[0]), dtype=torch.int64)
    return TERMS[type(spec)](spec)(LossInputs(student[0], labels, teacher[0])).mean()


def at_the_last_layer(spec: LossSpec, student: Side, teacher: Side) -> Tensor:
    """The term on hidden states and a head, as for language models."""
    return linear_distillation(*student, HiddenTeacher(*teacher), None, RowSpec(divergence_of(spec))).total


def _side(shape: Shape, with_head: bool, draw: torch.Generator) -> Side:
    if not with_head:
        return [SCALE * torch.randn(*shape, generator=draw)]
    hidden, head = (torch.randn(count, WIDTH, generator=draw) for count in shape)
    return [hidden, SCALE * WIDTH**-0.5 * head]


def _differentiate(loss: Loss, student: Side, teacher: Side) -> tuple[float, list[Tensor]]:
    leaves = [tensor.detach().requires_grad_() for tensor in student]
    value = loss(leaves, teacher)
    return value.item(), list(torch.autograd.grad(value, leaves))


def _trl(beta: float, temperature: float) -> Loss:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.gkd import GKDTrainer

    theirs: Callable[..., Tensor] = GKDTrainer.generalized_jsd_loss
    return lambda student, teacher: theirs(student[0], teacher[0], beta=beta, temperature=temperature)


def _torch_kl(temperature: float) -> Loss:
    def loss(student: Side, teacher: Side) -> Tensor:
        logs = (F.log_softmax(side[0] / temperature, dim=-1) for side in (student, teacher))
        return F.kl_div(*logs, reduction="batchmean", log_target=True) * temperature**2

    return loss


def _liger_chunked(beta: float, temperature: float, compiled: bool) -> Loss:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    theirs: Any = LigerFusedLinearJSDLoss(0.0, 1.0, beta=beta, temperature=temperature, compiled=compiled)

    def loss(student: Side, teacher: Side) -> Tensor:
        found: Tensor = theirs(*student, *teacher, torch.zeros(len(student[0]), dtype=torch.int64))
        return found

    return loss


def _liger_triton(beta: float) -> Loss:
    from liger_kernel.transformers import LigerJSD

    theirs: Any = LigerJSD(beta=beta)

    def loss(student: Side, teacher: Side) -> Tensor:
        found: Tensor = theirs(F.log_softmax(student[0], dim=-1), F.log_softmax(teacher[0], dim=-1))
        return found

    return loss


PAIRS = (
    Pair("jsd, β 0.5, T 0.9", "TRL", Jsd(beta=0.5, temperature=0.9), partial(_trl, 0.5, 0.9)),
    Pair("jsd, β 0 (forward KL)", "TRL", Jsd(beta=0.0, temperature=0.9), partial(_trl, 0.0, 0.9)),
    Pair("jsd, β 1 (reverse KL)", "TRL", Jsd(beta=1.0, temperature=0.9), partial(_trl, 1.0, 0.9)),
    Pair("kd, T 4", "torch's kl_div", Kd(temperature=4.0), partial(_torch_kl, 4.0)),
    Pair(
        "linear and jsd, β 0.5",
        "Liger, chunked",
        Jsd(beta=0.5, temperature=0.9),
        partial(_liger_chunked, 0.5, 0.9, False),
        with_head=True,
    ),
    Pair(
        "linear and jsd, β 0.5",
        "Liger, chunked and compiled",
        Jsd(beta=0.5, temperature=0.9),
        partial(_liger_chunked, 0.5, 0.9, True),
        with_head=True,
    ),
    Pair("jsd, β 0.5", "Liger, Triton", Jsd(beta=0.5, temperature=1.0), partial(_liger_triton, 0.5)),
)
"""Peers and this project have the same conventions: β is the teacher's share of the mixture, and a loss is divided by
the rows."""
