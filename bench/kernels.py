"""Time and memory of distillation at the last layer, against the plain form and what others offer, as a table.

python -m bench.kernels [--short] [--seconds 40] [--write docs/performance.md]

Every contender computes half of forward KL plus half of cross-entropy over the same hidden states, and the gradients of
the student's hidden states and weight. They take turns in one process, in float32 on all cores; medians count, after one
turn each that does not. Memory is the highest that the process's resident set reached (VmHWM of Linux, set back before
either pass) beyond what it was before the turn, less the gradients wherever they are there already. The floor is the
four products that nobody can spare, into memory that is there already.

Others are looked for in `bench/kernels_env`, which `make bench-kernels` fills; who can't be loaded is named as missing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.report import machine, replace_part
from worker.kernels.linear import HiddenTeacher, linear_distillation
from worker.kernels.spec import Divergence, RowSpec

OTHERS = Path(__file__).parent / "kernels_env"
SPEC = RowSpec(Divergence("forward-kl"), divergence_weight=0.5, ce_weight=0.5)
MB = 1_000_000
LEAST_ROUNDS, MOST_ROUNDS = 3, 9
TIME_TARGET, MEMORY_TARGET = 0.9, 1 / 8
OURS, PLAIN, COMPILED, LIGER, FLOOR = (
    "Stillhouse",
    "plain eager",
    "torch.compile of it",
    "Liger's chunked loss",
    "floor",
)
HEADINGS = ("what", "time, median (range)", "to the floor", "to plain", "memory", "to plain")


class Shape(NamedTuple):
    """Sizes of both sides, which are alike."""

    rows: int
    hidden: int
    vocabulary: int

    @property
    def flops(self) -> int:
        """Of the four products."""
        return 8 * math.prod(self)


FULL = (Shape(1024, 512, 32_768), Shape(256, 1024, 128_256))
SHORT = (Shape(64, 64, 4096),)


class Case:
    """Inputs of one shape."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        size, deviation = (shape.rows, shape.hidden), shape.hidden**-0.5
        self.hidden, self.teacher_hidden = torch.randn(size).requires_grad_(), torch.randn(size)
        weights = [torch.randn(shape.vocabulary, shape.hidden).mul_(deviation) for _ in range(2)]
        self.weight, self.teacher_weight = weights[0].requires_grad_(), weights[1]
        self.labels = torch.randint(shape.vocabulary, (shape.rows,))

    @property
    def gradients(self) -> int:
        """Their bytes."""
        return sum(leaf.numel() * leaf.element_size() for leaf in (self.hidden, self.weight))


class Contender(NamedTuple):
    """Whoever computes the loss."""

    loss: Callable[[Case], Tensor]
    early: bool = False
    """Whether it makes the gradients in the forward pass."""


class Turn(NamedTuple):
    """One forward and backward pass."""

    seconds: float
    memory: int
    loss: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page if asked to. A missed target is stated, and is no failure."""
    options = _parser().parse_args(arguments)
    sys.path.append(str(OTHERS))
    torch.set_num_threads(os.cpu_count() or 1)
    begun = time.monotonic()
    text = "\n\n".join(_section(shape, options.seconds) for shape in (SHORT if options.short else FULL))
    made = f"`make bench-kernels`, {datetime.now(UTC):%Y-%m-%d}, in {time.monotonic() - begun:.0f} s, on {machine()}."
    print(f"{made}\n\n{text}")
    if options.write:
        replace_part(options.write, "kernels", f"{made}\n\n{text}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description="Measures the kernels.")
    parser.add_argument(
        "--short", action="store_true", help="a tiny shape: shows that it runs; the figures mean little"
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="roughly, for each shape")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose table is replaced")
    return parser


def _section(shape: Shape, seconds: float) -> str:
    case = Case(shape)
    contenders, missing = _contenders(case)
    turns = rounds(contenders, case, seconds)
    head = f"{shape.rows:,} rows, {shape.hidden:,} hidden numbers, {shape.vocabulary:,} classes"
    rate = shape.flops / _median(turns[FLOOR]) / 1e9
    notes = [f"floor: {shape.flops / 1e9:.0f} GFLOP at {rate:.0f} GFLOP/s; {len(turns[OURS])} rounds.", *missing]
    return "\n\n".join((f"**{head}**", _table(turns), "\n".join(f"* {note}" for note in (*notes, *_targets(turns)))))


def _contenders(case: Case) -> tuple[dict[str, Contender], list[str]]:
    """Those that there are, and a line on each that is missing."""
    found = {OURS: Contender(ours, early=True), PLAIN: Contender(plain), COMPILED: Contender(torch.compile(plain))}
    missing = []
    try:
        found[LIGER] = Contender(liger(), early=True)
    except ImportError as error:
        missing.append(f"{LIGER}: missing ({error})")
    return {**found, FLOOR: Contender(Floor(case))}, missing


def ours(case: Case) -> Tensor:
    """Total of the fused form."""
    teacher = HiddenTeacher(case.teacher_hidden, case.teacher_weight)
    return linear_distillation(case.hidden, case.weight, teacher, case.labels, SPEC).total


def plain(case: Case) -> Tensor:
    """What one would write down."""
    student = F.linear(case.hidden, case.weight)
    with torch.no_grad():
        teacher = F.linear(case.teacher_hidden, case.teacher_weight).log_softmax(-1)
    divergence = F.kl_div(student.log_softmax(-1), teacher, reduction="batchmean", log_target=True)
    return 0.5 * divergence + 0.5 * F.cross_entropy(student, case.labels)


def liger() -> Callable[[Case], Tensor]:
    """As it comes, compiled. Raises ImportError where it cannot be loaded."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.0)
    return lambda case: loss(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight, case.labels)


class Floor:
    """The products: logits of both sides, gradients of hidden states and weight."""

    def __init__(self, case: Case) -> None:
        self._logits = torch.empty(case.hidden.shape[0], case.weight.shape[0])
        self._of_hidden, self._of_weight = torch.empty_like(case.hidden), torch.empty_like(case.weight)

    @torch.no_grad()
    def __call__(self, case: Case) -> Tensor:
        """No loss; there is nothing to go back through."""
        for hidden, weight in ((case.teacher_hidden, case.teacher_weight), (case.hidden, case.weight)):
            torch.mm(hidden, weight.t(), out=self._logits)
        torch.mm(self._logits, case.weight, out=self._of_hidden)
        torch.mm(self._logits.t(), case.hidden, out=self._of_weight)
        return torch.tensor(math.nan)


def rounds(contenders: dict[str, Contender], case: Case, seconds: float) -> dict[str, list[Turn]]:
    """Turns of each, until `seconds` are over. Raises RuntimeError when they disagree on the loss."""
    losses = {name: turn(contender, case).loss for name, contender in contenders.items() if name != FLOOR}
    if max(losses.values()) - min(losses.values()) > 1e-4 * abs(losses[PLAIN]):
        raise RuntimeError(f"not the same loss: {losses}")
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    end = time.monotonic() + seconds
    while len(turns[OURS]) < LEAST_ROUNDS or (len(turns[OURS]) < MOST_ROUNDS and time.monotonic() < end):
        for name, contender in contenders.items():
            turns[name].append(turn(contender, case))
    return turns


def turn(contender: Contender, case: Case) -> Turn:
    """Forward and backward from clean gradients."""
    case.hidden.grad = case.weight.grad = None
    before = _settled()
    begin = time.perf_counter()
    loss = contender.loss(case)
    seconds = time.perf_counter() - begin
    forward = _highest() - contender.early * case.gradients
    if not loss.requires_grad:
        return Turn(seconds, 0, math.nan)
    begin = time.perf_counter()
    loss.backward()
    seconds += time.perf_counter() - begin
    return Turn(seconds, max(forward, _highest() - case.gradients) - before, float(loss.detach()))


def _settled() -> int:
    """Resident bytes, once what is free was given back; from here on the highest counts."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _highest()
    return _status("VmRSS")


def _highest() -> int:
    """The most resident bytes since the last call."""
    highest = _status("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return highest


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def _median(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.seconds for turn in turns)


def _memory(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.memory for turn in turns)


def _table(turns: dict[str, list[Turn]]) -> str:
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(_cells(name, turns) for name in turns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(name: str, turns: dict[str, list[Turn]]) -> Iterator[str]:
    seconds, (own, plain) = [turn.seconds for turn in turns[name]], (turns[name], turns[PLAIN])
    yield name
    yield f"{_median(own):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"
    yield f"{_median(own) / _median(turns[FLOOR]):.2f}"
    yield f"{_median(own) / _median(plain):.2f}"
    yield "" if name == FLOOR else f"{_memory(own) / MB:.0f} MB"
    yield "" if name == FLOOR else f"{_memory(own) / _memory(plain):.3f}"


def _targets(turns: dict[str, list[Turn]]) -> Iterator[str]:
    time_ratio = _median(turns[OURS]) / _median(turns[PLAIN])
    memory_ratio = _memory(turns[OURS]) / _memory(turns[PLAIN])
    yield f"at most {TIME_TARGET:g} of plain's time: {_verdict(time_ratio <= TIME_TARGET)}"
    yield f"at most {MEMORY_TARGET:g} of plain's memory: {_verdict(memory_ratio <= MEMORY_TARGET)}"
    if LIGER in turns:
        yield f"not slower than {LIGER}: {_verdict(_median(turns[OURS]) <= _median(turns[LIGER]))}"


def _verdict(reached: bool) -> str:
    return "yes" if reached else "NO"


if __name__ == "__main__":
    main()
