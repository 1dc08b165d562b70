"""`python -m bench.optimizers`: what a step of AdamP and SGDP takes beside torch's AdamW, on the CPU.

The parameters are those of a ResNet-50 and of a language model with 100 million parameters, as lists of shapes. All
contestants step in turn, round after round, so that whatever else the machine does meets each of them alike. With
batch norm before every non-linearity, gradients are orthogonal to the weights and every update is projected; with
random gradients hardly any is. Both are measured, though the work is the same.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from app.recipe.optimizers import AdamP, AdamW, Optimizer, Sgd, SgdP, SinkGd, Swan
from worker.optimizers import build_optimizer

Shapes = list[tuple[int, ...]]
CONTESTANTS: dict[str, Optimizer] = {
    "AdamW (torch, foreach)": AdamW(),
    "AdamP": AdamP(weight_decay=0.01),
    "SGD (torch, foreach)": Sgd(lr=1e-3),
    "SGDP": SgdP(lr=1e-3, momentum=0.9),
    "SinkGD": SinkGd(),
    "SWAN": Swan(),
}
HEAVY = {"SWAN"}
"""Products of matrices in every step: only where asked for by name."""


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


def parameters(shapes: Shapes, orthogonal: bool) -> list[nn.Parameter]:
    """Weights with gradients: random, or orthogonal to each channel's weights."""
    made = [nn.Parameter(torch.randn(shape) / math.sqrt(max(1, math.prod(shape[1:])))) for shape in shapes]
    for weight in made:
        weight.grad = torch.randn_like(weight)
        if orthogonal and weight.ndim > 1:
            rows, gradient = weight.detach().flatten(1), weight.grad.flatten(1)
            along = (rows * gradient).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)
            weight.grad = (gradient - along * rows).view_as(weight)
    return made


def seconds(
    contestants: Mapping[str, Optimizer], shapes: Shapes, orthogonal: bool, rounds: int
) -> dict[str, list[float]]:
    """Time of each step, by contestant; the first round, which makes the state, is left out."""
    torch.manual_seed(0)
    shared = parameters(shapes, orthogonal)
    optimizers = {
        name: build_optimizer(spec.model_copy(update={"lr": 1e-9}), shared) for name, spec in contestants.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds + 1):
        for name, optimizer in optimizers.items():
            begin = time.perf_counter()
            optimizer.step()
            taken[name].append(time.perf_counter() - begin)
    return {name: times[1:] for name, times in taken.items()}


def rows(contestants: Mapping[str, Optimizer], rounds: int) -> Iterator[tuple[str, ...]]:
    """One row of the table for each network, kind of gradients and contestant."""
    for network, shapes in NETWORKS.items():
        for gradients in ("random", "orthogonal"):
            taken = seconds(contestants, shapes(), gradients == "orthogonal", rounds)
            base = next(iter(taken.values()))
            for name, times in taken.items():
                ratios = [one / other for one, other in zip(times, base, strict=True)]
                spread = f"{min(times) * 1e3:.0f} to {max(times) * 1e3:.0f}"
                yield (
                    network,
                    gradients,
                    name,
                    f"{statistics.median(times) * 1e3:.0f}",
                    spread,
                    f"{statistics.median(ratios):.2f}",
                )


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(prog="python -m bench.optimizers", description="Times steps of optimizers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    first, *others = CONTESTANTS
    names = [first, *(name for name in others if name in (arguments.names or set(others) - HEAVY))]
    table = Table("network", "gradients", "optimizer", "ms a step", "from … to", f"of {first}")
    for row in rows({name: CONTESTANTS[name] for name in names}, arguments.rounds):
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
