"""`python -m bench.optimizers`: time of a step of each optimizer compared with torch's AdamW, as one table.

python -m bench.optimizers [NAME …] [--rounds 9] [--threads 1] [--device cpu] [--write docs/performance.md]

The parameters are those of a ResNet-50 and of a language model with 98 million parameters, as lists of shapes. All
contestants step in turn, round after round, so that whatever else the machine does meets each of them alike. Where
batch norm follows, gradients are orthogonal to the weights and every update is projected; of random ones hardly any is.
Both are measured, though the work is the same.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from app.recipe.optimizers import AdamP, AdamW, Optimizer, Sgd, SgdP, SinkGd, Swan
from bench.report import replace_part, show, system, versions
from bench.rows import Row, Target, markdown
from worker.optimizers import build_optimizer

Shapes = list[tuple[int, ...]]
REFERENCES = {"cpu": "AdamW, foreach", "cuda": "AdamW, fused"}
"""Reference: torch's AdamW on lists of tensors, and on CUDA in one kernel."""
OURS: dict[str, Optimizer] = {
    "adamw": AdamW(),
    "adamp": AdamP(weight_decay=0.01),
    "sgd": Sgd(lr=1.0),
    "sgdp": SgdP(lr=1.0, momentum=0.9, weight_decay=1e-4),
    "sinkgd": SinkGd(),
    "swan": Swan(),
}
"""AdamW as jobs use it."""
HEAVY = {"swan"}
"""Optimizers with products of matrices in every step: only if selected by name."""
PROJECTED = ("adamp", "sgdp")
BOUNDS = {"cpu": 1.5, "cuda": 1.25}
"""Target of the projected optimizers' ratio to the reference."""
UNMOVED = 1e-9
"""Learning rate: so small that the weights do not change, and gradients stay orthogonal to them."""


def resnet50() -> Shapes:
    """25.6 million parameters (1512.03385)."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convolutions += [(4 * width, inputs, 1, 1)] if block == 0 else []
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]
            inputs = 4 * width
    return [*shapes, (1000, inputs), (1000,)]


def transformer() -> Shapes:
    """A decoder of 12 blocks of width 768 with 16384 tokens that embedding and head share: 98 million parameters."""
    width, tokens, positions = 768, 16384, 1024
    block: Shapes = [(width,)] * 4
    for outputs, inputs in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
        block += [(outputs, inputs), (outputs,)]
    return [(tokens, width), (positions, width), *block * 12, (width,), (width,)]


NETWORKS: dict[str, Callable[[], Shapes]] = {"ResNet-50": resnet50, "transformer, 98 M": transformer}


def parameters(shapes: Shapes, orthogonal: bool, device: str = "cpu") -> list[nn.Parameter]:
    """Float32 weights with gradients: random, or orthogonal to each channel's weights."""
    torch.manual_seed(0)
    made = [nn.Parameter(torch.randn(shape) / math.sqrt(max(1, math.prod(shape[1:])))) for shape in shapes]
    for weight in made:
        weight.grad = torch.randn_like(weight)
        if orthogonal and weight.ndim > 1:
            rows, gradient = weight.detach().flatten(1), weight.grad.flatten(1)
            along = (rows * gradient).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)
            weight.grad = (gradient - along * rows).view_as(weight)
    moved = [nn.Parameter(weight.detach().to(device)) for weight in made]
    for weight, source in zip(moved, made, strict=True):
        weight.grad = source.grad.to(device) if source.grad is not None else None
    return moved


def milliseconds(names: Sequence[str], shared: Sequence[nn.Parameter], rounds: int) -> dict[str, list[float]]:
    """Time of each step, by contestant; without the first round, which creates the state."""
    kind = "fused" if shared[0].is_cuda else "foreach"
    contestants = {REFERENCES[shared[0].device.type]: torch.optim.AdamW(shared, lr=UNMOVED, **{kind: True})}
    contestants |= {name: build_optimizer(OURS[name].model_copy(update={"lr": UNMOVED}), shared) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, optimizer in contestants.items():
            begin = _now(shared)
            optimizer.step()
            taken[name].append(1e3 * (_now(shared) - begin))
    return {name: times[1:] for name, times in taken.items()}


def _now(shared: Sequence[nn.Parameter]) -> float:
    if shared[0].is_cuda:
        torch.cuda.synchronize(shared[0].device)
    return time.perf_counter()


def measure(names: Sequence[str], rounds: int, device: str) -> Iterator[Row]:
    """One row for each network, kind of gradients and contestant; figures are medians."""
    kind = torch.device(device).type
    target = Target("ratio", "under", BOUNDS[kind])
    for network, shapes in NETWORKS.items():
        for gradients in ("random", "orthogonal"):
            taken = milliseconds(names, parameters(shapes(), gradients == "orthogonal", device), rounds)
            for name in names:
                yield Row(
                    what=f"{network}, {gradients} gradients: {name}",
                    figure=statistics.median(taken[name]),
                    unit="ms",
                    reference=statistics.median(taken[REFERENCES[kind]]),
                    reference_name=REFERENCES[kind],
                    note=f"{min(taken[name]):.3g} to {max(taken[name]):.3g}",
                    target=target if name in PROJECTED else None,
                )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print one table, and write it into a page with `--write`."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    command = " ".join(["python -m bench.optimizers", *(sys.argv[1:] if arguments is None else arguments)])
    begun = time.monotonic()
    found = list(measure(options.names or [name for name in OURS if name not in HEAVY], options.rounds, options.device))
    show(found, Console(width=None if sys.stdout.isatty() else 160))
    if options.write:
        made = (
            f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, in {time.monotonic() - begun:.0f} s, on "
            f"{system()}, {options.device}, threads {options.threads}, rounds {options.rounds}; "
            f"{', '.join(versions(('torch',)))}."
        )
        replace_part(options.write, "optimizers", f"{made}\n\n{markdown(found)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.optimizers", description="Times steps of optimizers.")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *OURS], help=f"of {', '.join(OURS)}")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of everything, all in turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose table is replaced")
    return parser


if __name__ == "__main__":
    main()
