"""The search after the training of shared networks: every sub-network is evaluated with the weights that it has there.

Nothing is drawn, so that an attempt that repeats the search finds the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from app.recipe.methods.base import FIELD
from app.recipe.methods.supernet import Search
from app.recipe.plan import EVAL_BATCH
from app.recipe.students.searched import PICTURE, SEARCH, SearchedSpace, SearchFile, SearchRow, weights_name
from worker.losses.objective import TOTAL, BatchOutputs
from worker.methods.base import Interrupted, Latency, MethodInputs, Outcome
from worker.methods.supernet_step import tokens_per_row
from worker.protocol import Log
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.super_network import SuperNetwork
from worker.training.loop import Stage


class SharedWeights(NamedTuple):
    """A sub-space, and the network that its sub-networks are slices of."""

    space: SuperNetwork
    model: Model


def search(
    limits: Search, spaces: Sequence[SharedWeights], stage: Stage, inputs: MethodInputs, latency: Latency
) -> Outcome:
    """Evaluate all sub-networks on the held-out samples by the objective of `stage`, whose teachers compute their
    outputs for any samples, and choose the best one within `limits`. Raises Interrupted."""
    losses = [evaluated_losses(each, stage, inputs) for each in spaces]
    rows = _rows(spaces, losses)
    rows, chosen = choose(rows, limits, lambda row: latency(_extracted(spaces, row).cpu().eval()), inputs)
    described = [
        SearchedSpace(weights=weights_name(number), config=each.space.config, axes=each.space.axes)
        for number, each in enumerate(spaces)
    ]
    document = SearchFile(spaces=described, rows=rows, chosen=chosen.row)
    front = [row.model_dump() for row in rows if row.pareto]
    figures = {"rows": len(rows), "samples": inputs.data.eval.samples, "chosen": chosen.model_dump(), "front": front}
    student = _extracted(spaces, chosen)
    return Outcome(student, {"search": {**figures, "picture": PICTURE}}, partial(_write, document, spaces))


@torch.no_grad()
def evaluated_losses(weights: SharedWeights, stage: Stage, inputs: MethodInputs) -> list[float]:
    """The objective of every sub-network on the held-out samples, in their order; in full float32."""
    space, model = weights
    held_out = inputs.data.eval
    count = stage.objective.count(held_out.targets)
    tokens = tokens_per_row(model, held_out, count)
    parts = list(held_out.split(-(-held_out.samples // (EVAL_BATCH // held_out.rows_per_sample))))
    sums = [torch.zeros((), dtype=torch.float64) for _ in space.networks]
    for number, part in enumerate(parts, start=1):
        signals = {name: teacher(part) for name, teacher in stage.teachers.items()}
        for place, sizes in enumerate(space.networks):
            if inputs.stop():
                raise Interrupted
            outputs = space.call(model, sizes)(samples := part.inputs[model.input_key])
            features, rows = space.take(sizes), part.rows_per_sample
            seen = BatchOutputs(
                outputs, part.targets, signals, features, model.tokens(samples), tokens, rows_per_sample=rows
            )
            found = stage.objective(seen, count, stage.plan.epochs, stage.plan.epochs)
            sums[place] += found[TOTAL].double().cpu()
        inputs.send(Log(message=f"search: {len(space.networks)} sub-networks on part {number} of {len(parts)}"))
    return [float(each) for each in sums]


def choose(
    rows: Sequence[SearchRow], limits: Search, latency: Callable[[SearchRow], float], inputs: MethodInputs
) -> tuple[list[SearchRow], SearchRow]:
    """The row with the lowest loss within the limits, and all rows with the latencies that were measured.

    `latency` measures that of a row, in milliseconds. If none is fast enough, the fastest is chosen, with a warning.
    """
    allowed = [row for row in rows if limits.keeps(row.parameters, row.flops)]
    if limits.max_latency_ms is None:
        return list(rows), min(allowed, key=lambda row: row.loss)
    front = [row for row in allowed if not any(dominates(other, row) for other in allowed)]
    measured: list[tuple[float, SearchRow]] = []
    for row in sorted(front, key=lambda row: row.flops):
        took = latency(row)
        measured.append((took, row.model_copy(update={"latency_ms": took})))
        inputs.send(Log(message=f"search: row {row.row} takes {took:.3g} ms"))
    fast = [row for took, row in measured if took <= limits.max_latency_ms]
    least, fastest = min(measured, key=lambda pair: pair[0])
    if not fast:
        found = f"the fastest sub-network takes {least:.3g} ms, more than {FIELD}.search.max_latency_ms"
        inputs.send(Log(level="warning", message=f"{found}: {limits.max_latency_ms:.3g}; it is chosen"))
    known = {row.row: row for _, row in measured}
    return [known.get(row.row, row) for row in rows], min(fast, key=lambda row: row.loss, default=fastest)


def dominates(one: SearchRow, other: SearchRow) -> bool:
    """Whether `one` is as small, as cheap and as good as `other`, and better in something."""
    first, second = ((row.parameters, row.flops, row.loss) for row in (one, other))
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def _rows(spaces: Sequence[SharedWeights], losses: Sequence[Sequence[float]]) -> list[SearchRow]:
    found: list[SearchRow] = []
    for number, ((space, _), values) in enumerate(zip(spaces, losses, strict=True)):
        for sizes, loss in zip(space.networks, values, strict=True):
            cost = network_cost(space.config_of(sizes))
            row = {**sizes._asdict(), "parameters": cost.parameters, "flops": cost.flops, "loss": loss}
            found.append(SearchRow(row=len(found), space=number, **row))
    return [row.model_copy(update={"pareto": not any(dominates(other, row) for other in found)}) for row in found]


def _extracted(spaces: Sequence[SharedWeights], row: SearchRow) -> Model:
    return spaces[row.space].space.extract(spaces[row.space].model, row.sizes)


def _write(document: SearchFile, spaces: Sequence[SharedWeights], folder: Path) -> list[str]:
    """Write all rows, the shared weights and the picture into `folder`; the names of the files."""
    (folder / SEARCH).write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for described, (_, model) in zip(document.spaces, spaces, strict=True):
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
        save_file(state, folder / described.weights, metadata={"format": "pt"})
    draw_front(document, folder / PICTURE)
    return [SEARCH, PICTURE, *(described.weights for described in document.spaces)]


def draw_front(document: SearchFile, path: Path) -> None:
    """Write a PNG of losses over weights: all rows, the Pareto front, and the chosen row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a third of a second that training need not wait for
    from matplotlib.figure import Figure

    figure = Figure((6.0, 4.0), 100)
    axes = figure.add_axes((0.13, 0.13, 0.84, 0.82))
    for number in range(len(document.spaces)):
        rows = [row for row in document.rows if row.space == number]
        axes.scatter(*_points(rows), s=12, alpha=0.6, label=f"sub-space {number + 1}")
    front = sorted((row for row in document.rows if row.pareto), key=lambda row: row.parameters)
    axes.plot(*_points(front), color="0.5", linewidth=1, label="Pareto front")
    axes.scatter(*_points([document.rows[document.chosen]]), s=60, marker="*", color="black", label="chosen", zorder=3)
    axes.set_xlabel("weights")
    axes.set_ylabel("loss on held-out samples")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]


def _points(rows: Iterable[SearchRow]) -> tuple[list[int], list[float]]:
    found = list(rows)
    return [row.parameters for row in found], [row.loss for row in found]
