"""`python -m bench.layers [--picture FILE]` measures a step of every kind of attention for more and more patches.

A layer of width 64 with 4 heads, forward and backward for one image, in float32 on one thread of the CPU. The figures
are CPU time, so that other programs of the machine count less. It prints a table, and draws it into FILE.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path
from statistics import median

import torch

from app.recipe.students.layers import (
    AttentionShape,
    AttentionSpec,
    LinearAttention,
    NalaAttention,
    SigmoidAttention,
    SoftAttention,
    SoftmaxAttention,
    SoftplusAttention,
)
from bench.report import system
from worker.students.layers.attentions import ATTENTIONS

WIDTH, HEADS, MARKS = 64, 4, 8
"""Sizes of the layer; rows and columns of landmarks of `soft`, as many for every image."""
SIDES, ROUNDS = (16, 24, 32, 48), 3
KINDS: dict[str, Callable[[int], AttentionSpec]] = {
    "softmax": lambda side: SoftmaxAttention(),
    "sigmoid": lambda side: SigmoidAttention(),
    "softplus": lambda side: SoftplusAttention(),
    "linear": lambda side: LinearAttention(),
    "soft": lambda side: SoftAttention(ratio=side // MARKS),
    "nala": lambda side: NalaAttention(),
}
Times = dict[str, list[float]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(prog="bench.layers", description=__doc__)
    parser.add_argument("--picture", type=Path, help="a PNG file to write")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="patches per side, multiples of 8")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    times = measure(options.sides, options.rounds)
    print(
        f"{system()}, torch {torch.__version__}, one thread, {options.rounds} rounds\n\n{table(options.sides, times)}"
    )
    if options.picture:
        draw(options.sides, times, options.picture)


def measure(sides: Sequence[int], rounds: int) -> Times:
    """CPU milliseconds of a forward and backward pass, by kind for each of `sides`: the median of `rounds`, which take
    turns."""
    took = {kind: [list[float]() for _ in sides] for kind in KINDS}
    for _ in range(rounds):
        for kind, make in KINDS.items():
            for place, side in enumerate(sides):
                took[kind][place].append(step(make(side), side))
    return {kind: [median(each) for each in of_sides] for kind, of_sides in took.items()}


def step(attention: AttentionSpec, side: int) -> float:
    """CPU milliseconds of one step after another one."""
    shape = AttentionShape(side**2, WIDTH, HEADS, (side, side))
    layer, x = ATTENTIONS.build(attention, shape), torch.randn(1, shape.tokens, WIDTH)
    for _ in range(2):
        begun = time.process_time()
        layer(x).square().mean().backward()
    return 1e3 * (time.process_time() - begun)


def growth(sides: Sequence[int], times: Sequence[float]) -> float:
    """Exponent by which times grow with the patches, from the first to the last."""
    return log(times[-1] / times[0]) / log(sides[-1] ** 2 / sides[0] ** 2)


def table(sides: Sequence[int], times: Times) -> str:
    """The figures in Markdown."""
    head = ["attention", *(f"{side**2:,}" for side in sides), "exponent"]
    rows = [[kind, *(f"{each:.1f}" for each in took), f"{growth(sides, took):.2f}"] for kind, took in times.items()]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def draw(sides: Sequence[int], times: Times, path: Path) -> None:
    """The same as curves on logarithmic axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, took in times.items():
        axes.loglog([side**2 for side in sides], took, marker="o", label=kind)
    axes.set(xlabel="patches", ylabel="CPU milliseconds of a step")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
