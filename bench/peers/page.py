"""The tables, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.peers.losses import Compared, Missing
from bench.peers.runs import OURS, Ran, Run, loss_gap, ratio, weight_gap

LOSSES = ("loss", "against", "rows × classes", "value", "gradient", "ours, ms", "theirs, ms", "ours / theirs")
RUNS = ("training", "engine", "losses", "weights", "ms per step", "processor ms", "ours / theirs", "by processor")


def losses_table(rows: Sequence[Compared | Missing]) -> str:
    """One line for every loss at every shape."""
    return _table(LOSSES, [_loss(row) for row in rows])


def _loss(row: Compared | Missing) -> tuple[str, ...]:
    named = row.pair.what, row.pair.peer
    if isinstance(row, Missing):
        return (*named, row.why, "", "", "", "", "")
    gaps = _gap(row.value_gap), _gap(row.gradient_gap)
    return (*named, str(row.shape), *gaps, _spread(row.ours), _spread(row.theirs), f"{ratio(row.ours, row.theirs):.2f}")


def runs_table(runs: Sequence[Run]) -> str:
    """One line for every engine of every training."""
    return _table(RUNS, [line for run in runs for line in _run(run)])


def _run(run: Run) -> list[tuple[str, ...]]:
    ours = run.engines[OURS]
    if isinstance(ours, str):
        raise RuntimeError(f"this trainer failed: {ours}")
    return [(f"{run.objective}, {run.name}", name, *_engine(ours, ran)) for name, ran in run.engines.items()]


def _engine(ours: Ran, ran: Ran | str) -> tuple[str, ...]:
    if isinstance(ran, str):
        return (ran, "", "", "", "", "")
    wall, processor = ([taken[column] for taken in ran.rounds] for column in (0, 1))
    if ran is ours:
        return ("", "", _spread(wall), _spread(processor), "", "")
    own_wall, own_processor = ([taken[column] for taken in ours.rounds] for column in (0, 1))
    gaps = _gap(loss_gap(ours, ran)), _gap(weight_gap(ours, ran))
    ratios = f"{ratio(own_wall, wall):.2f}", f"{ratio(own_processor, processor):.2f}"
    return (*gaps, _spread(wall), _spread(processor), *ratios)


def _gap(value: float) -> str:
    return "0" if value == 0.0 else f"{value:.0e}"


def _spread(seconds: Sequence[float]) -> str:
    """Median, smallest and largest, in milliseconds."""
    middle, least, most = (1e3 * pick(seconds) for pick in (statistics.median, min, max))
    return f"{middle:.3g} ({least:.3g} to {most:.3g})"


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
