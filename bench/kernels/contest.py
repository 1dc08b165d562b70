"""Comparison of implementations on the same inputs, in turn, on a CPU or a CUDA device: time, memory, and equal
loss."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.peers.absence import why

LEAST_ROUNDS, MOST_ROUNDS = 3, 9
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Relative tolerance of a loss, by dtype of the inputs: some contenders compute logarithms in it."""
MB = 1_000_000


class Contender(NamedTuple):
    """One implementation of the loss."""

    loss: Callable[[], Tensor]
    """Returns the loss; without a graph if it has already stored the gradients."""
    alone: bool = False
    """Whether it computes the divergence alone, without cross-entropy."""
    early: bool = False
    """Whether the gradients of the inputs are computed in the forward pass."""
    tolerance: float | None = None
    """Replaces `TOLERANCE` for a contender with intended rounding."""


@dataclass(frozen=True)
class Contest:
    """One set of inputs, and facts for all contenders."""

    title: str
    device: torch.device
    dtype: torch.dtype
    load: dict[str, Callable[[], Contender]]
    """Loaders of the contenders by name; a loader raises if it is not available. The second one is the reference."""
    reset: Callable[[], None]
    """Restores the inputs; not timed."""
    divergence: Callable[[], Tensor]
    """The divergence alone, for contenders without cross-entropy."""
    gradient_bytes: int
    least_bytes: int
    """Least bytes to transfer: inputs read and gradients written once."""
    flops: int = 0
    """Operations of the necessary products; 0: there are none."""
    leaves: Sequence[Tensor] = ()
    """Tensors with gradients, for repeated passes."""
    repeats: int = 1
    """Passes that are timed together; more than one if a pass is too short to time."""


class Turn(NamedTuple):
    """Measurements of one forward pass without gradients, and one with the backward pass."""

    forward: float
    """Seconds."""
    both: float
    """Seconds."""
    memory: int
    """Peak bytes, without inputs and gradients."""
    loss: float


class Outcome(NamedTuple):
    """All turns of a contest."""

    contest: Contest
    turns: dict[str, list[Turn]]
    missing: dict[str, str]
    """Contenders that are not available, with the reason."""
    wrong: dict[str, str]
    """Contenders with another loss."""


def hold(contest: Contest, seconds: float) -> Outcome:
    """Run rounds until `seconds` have passed, after one warm-up turn each."""
    gc.freeze()  # so that the collection in every turn does not traverse all modules
    try:
        return _held(contest, seconds)
    finally:
        gc.unfreeze()


def _held(contest: Contest, seconds: float) -> Outcome:
    found, missing = _loaded(contest)
    first = {name: losses for name, contender in found.items() if (losses := _tried(contender, contest, missing, name))}
    wrong = dict(_disagreeing(first, found, contest))
    there = [name for name in first if name not in wrong]
    turns: dict[str, list[Turn]] = {name: [] for name in there}
    end, count = time.monotonic() + seconds, 0
    while there and (count < LEAST_ROUNDS or (count < MOST_ROUNDS and time.monotonic() < end)):
        for name in there:
            turns[name].append(turn(found[name], contest))
        count += 1
    return Outcome(contest, turns, missing, wrong)


def _loaded(contest: Contest) -> tuple[dict[str, Contender], dict[str, str]]:
    found: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for name, load in contest.load.items():
        try:
            found[name] = load()
        except Exception as error:  # a library may raise anything if it can't run
            missing[name] = why(error)
    return found, missing


def _tried(contender: Contender, contest: Contest, missing: dict[str, str], name: str) -> Turn | None:
    try:
        return turn(contender, contest)
    except Exception as error:  # as above; a missing compiler, or too little memory
        missing[name] = why(error)
        return None


def _disagreeing(turns: dict[str, Turn], found: dict[str, Contender], contest: Contest) -> Iterator[tuple[str, str]]:
    """Contenders whose loss differs from that of the plain reference."""
    contest.reset()
    with torch.no_grad():
        alone = float(contest.divergence())
    whole = turns[list(contest.load)[1]].loss if list(contest.load)[1] in turns else math.nan
    for name, (*_, loss) in turns.items():
        expected = alone if found[name].alone else whole
        allowed = found[name].tolerance or TOLERANCE[contest.dtype]
        if not abs(loss - expected) <= allowed * abs(expected) and not math.isnan(expected):
            yield name, f"gives {loss:.6g}, not {expected:.6g}"


def turn(contender: Contender, contest: Contest) -> Turn:
    """One turn; each pass begins without gradients."""
    meter = CUDA if contest.device.type == "cuda" else PROCESSOR
    contest.reset()
    with torch.no_grad():
        forward, _, loss = _timed(contender.loss, meter)
    contest.reset()
    before = meter.settled()
    first, highest, found = _timed(contender.loss, meter)
    memory, second = highest - contender.early * contest.gradient_bytes, 0.0
    if found.requires_grad:
        second, highest, _ = _timed(found.backward, meter)
        memory = max(memory, highest - contest.gradient_bytes)
    if contest.repeats > 1:
        forward, first, second = *_steady(contender, contest, meter), 0.0
    return Turn(forward, first + second, max(0, memory - before), float(loss))


def _steady(contender: Contender, contest: Contest, meter: MetricLogger) -> tuple[float, float]:
    """Seconds of a forward pass, and of one with the backward pass, in repeated passes."""

    def both() -> None:
        found = contender.loss()
        if found.requires_grad:
            torch.autograd.grad(found, contest.leaves)

    with torch.no_grad():
        forward = _each(contender.loss, contest, meter)
    return forward, _each(both, contest, meter)


def _each(call: Callable[[], object], contest: Contest, meter: MetricLogger) -> float:
    contest.reset()
    run = _graph(call, contest.repeats) if contest.device.type == "cuda" else partial(_loop, call, contest.repeats)
    meter.wait()
    begin = time.perf_counter()
    run()
    meter.wait()
    return (time.perf_counter() - begin) / contest.repeats


def _loop(call: Callable[[], object], repeats: int) -> None:
    for _ in range(repeats):
        call()


def _graph(call: Callable[[], object], repeats: int) -> Callable[[], None]:
    """Repeated calls without Python's launch overhead: a CUDA graph, or a plain loop if it can't be captured."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        _loop(call, 2)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            _loop(call, repeats)
    except Exception:  # a library that waits for the device may raise anything
        torch.cuda.synchronize()
        return partial(_loop, call, repeats)
    return graph.replay


class Timed(NamedTuple):
    """A call's seconds, peak memory and result."""

    seconds: float
    highest: int
    result: Tensor


def _timed(call: Callable[[], Tensor], meter: MetricLogger) -> Timed:
    meter.wait()
    begin = time.perf_counter()
    result = call()
    meter.wait()
    return Timed(time.perf_counter() - begin, meter.highest(), result)


class MetricLogger(NamedTuple):
    """Functions for measuring a device."""

    wait: Callable[[], None]
    """Waits until the device has finished."""
    settled: Callable[[], int]
    """Bytes in use after freeing unused memory; resets the peak."""
    highest: Callable[[], int]
    """Peak bytes in use since the last call."""


def _settled_processor() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _highest_resident()
    return _status("VmRSS")


def _highest_resident() -> int:
    highest = _status("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return highest


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def _settled_cuda() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    _highest_allocated()
    return torch.cuda.memory_allocated()


def _highest_allocated() -> int:
    highest = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return highest


PROCESSOR = MetricLogger(lambda: None, _settled_processor, _highest_resident)
"""Measures the process's resident set, on Linux."""
CUDA = MetricLogger(torch.cuda.synchronize, _settled_cuda, _highest_allocated)
"""Measures torch's allocator."""


class Machine(NamedTuple):
    """Measured peak rates of the device."""

    copied: float
    """Bytes per second, counting reads and writes."""
    multiplied: float
    """Floating-point operations per second, of a product in the dtype of the contest."""


def machine_rates(device: torch.device, dtype: torch.dtype, side: int, megabytes: int) -> Machine:
    """Rates of a copy of `megabytes` and a product of square matrices (side, side) in `dtype`: the best of several."""
    meter = CUDA if device.type == "cuda" else PROCESSOR
    source = torch.ones(megabytes * MB, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    square = torch.randn(side, side, device=device).to(dtype)
    product = torch.empty_like(square)
    copied = min(_timed(lambda: target.copy_(source), meter).seconds for _ in range(7))
    multiplied = min(_timed(lambda: torch.mm(square, square, out=product), meter).seconds for _ in range(7))
    return Machine(2 * megabytes * MB / copied, 2 * side**3 / multiplied)


def median(turns: Sequence[Turn], part: str = "both") -> float:
    """Median of seconds or bytes."""
    return statistics.median(getattr(turn, part) for turn in turns)
