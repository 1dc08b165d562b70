"""The contests, for a CPU and for CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.kernels import attention, heads, logit_rows, norms, page, retrieval
from bench.kernels.attention import Attended
from bench.kernels.contest import Contest, Machine, Outcome, hold, machine_rates
from bench.kernels.heads import Shape
from bench.kernels.logit_rows import Size
from bench.kernels.norms import Tokens
from bench.kernels.page import Verdict
from bench.kernels.retrieval import Listed
from worker.kernels.token_norms import KINDS

LISTS = {
    "mw": (Listed(32, 4, 128), Listed(128, 8, 128)),
    "dexml": (Listed(512, 4, 128), Listed(2048, 8, 128)),
}
"""Batches by kind of loss, the largest last."""
SHORT_LISTS = {"mw": (Listed(4, 2, 8),), "dexml": (Listed(4, 2, 8),)}
SIZES = tuple(Size(rows, classes) for rows in (256, 4096) for classes in (10, 100, 1000))


class Entry(NamedTuple):
    """One contest, which is created in its turn, and its targets."""

    make: Callable[[], Contest]
    verdicts: Sequence[Verdict]


class Plan(NamedTuple):
    """The measurements on a device."""

    device: torch.device
    dtype: torch.dtype
    entries: Sequence[Entry]
    rates: Callable[[], Machine]


def processor(short: bool) -> Plan:
    """Plan for a CPU: float32 on all cores."""
    shapes = (Shape(64, 64, 4096),) if short else (Shape(1024, 512, 32_768), Shape(256, 1024, 128_256))
    sizes = SIZES[:1] if short else SIZES
    found = plan("cpu", torch.float32, shapes, shapes[:1], sizes, (256, 8) if short else (4096, 400))
    return found._replace(entries=[*found.entries, *_lists(short, found.device, found.dtype)])


def cuda(short: bool) -> Plan:
    """Plan for CUDA: bfloat16."""
    full = (*(Shape(rows, 4096, 128_256) for rows in (1024, 2048, 4096, 8192)), Shape(4096, 2048, 151_936))
    shapes = (Shape(256, 256, 8192),) if short else full
    sizes = SIZES[:1] if short else (*SIZES, Size(1024, 128_256))
    found = plan("cuda", torch.bfloat16, shapes, shapes[2:3] or shapes, sizes, (512, 8) if short else (8192, 2000))
    return found._replace(entries=[*found.entries, *_layers(short, found.device, found.dtype)])


def plan(
    name: str,
    dtype: torch.dtype,
    shapes: Sequence[Shape],
    sparse: Sequence[Shape],
    sizes: Sequence[Size],
    rates: tuple[int, int],
) -> Plan:
    """A plan; `rates` are a side and megabytes for `machine_rates`."""
    device = torch.device(name)
    of_heads, of_rows = (page.HEADS_CUDA, page.ROWS_CUDA) if name == "cuda" else (page.HEADS, ())
    entries = [Entry(lambda shape=shape: heads.contest(shape, device, dtype), of_heads) for shape in shapes]
    entries += [Entry(lambda shape=shape: heads.sparse_contest(shape, device, dtype), page.SPARSES) for shape in sparse]
    entries += [
        Entry(lambda shape=shape: heads.codebook_contest(shape, device, dtype), page.CODEBOOKS) for shape in shapes[-1:]
    ]
    entries += [Entry(lambda size=size: logit_rows.contest(size, device, dtype), of_rows) for size in sizes]
    return Plan(device, dtype, entries, lambda: machine_rates(device, dtype, *rates))


def _lists(short: bool, device: torch.device, dtype: torch.dtype) -> Iterator[Entry]:
    """Losses of queries with candidates; their target is for the largest batch."""
    for kind, sizes in (SHORT_LISTS if short else LISTS).items():
        for size in sizes:
            verdicts = page.LISTS if size == sizes[-1] else ()
            yield Entry(partial(retrieval.contest, kind, size, device, dtype), verdicts)


def _layers(short: bool, device: torch.device, dtype: torch.dtype) -> Iterator[Entry]:
    """Sigmoid attention, all tokens with all and with earlier ones; and norms of sums."""
    for causal in (False, True):
        size = Attended(2, 2, 64, 16, causal) if short else Attended(4, 16, 4096, 64, causal)
        yield Entry(partial(attention.contest, size, device, dtype), ())
    for kind in KINDS:
        yield Entry(partial(norms.contest, kind, Tokens(64, 64) if short else Tokens(16_384, 4096), device, dtype), ())


class OpenEntry(NamedTuple):
    """Results of a contest, without its inputs, whose memory the next one needs."""

    data: dict[str, Any]
    section: str
    fault: str | None
    """Error of this project's loss, if it differs from the plain one."""


def held(plan: Plan, machine: Machine, seconds: float) -> Iterator[OpenEntry]:
    """Run the contests one after the other, each for about `seconds`."""
    for entry in plan.entries:
        result = _over(hold(entry.make(), seconds), machine, entry.verdicts)
        torch._dynamo.reset()  # code compiled for the last shapes would keep them alive
        print(result.section, end="\n\n", file=sys.stderr, flush=True)
        yield result


def _over(outcome: Outcome, machine: Machine, verdicts: Sequence[Verdict]) -> OpenEntry:
    return OpenEntry(page.data(outcome), page.section(outcome, machine, verdicts), outcome.wrong.get(heads.OURS))
