"""The tables in Markdown, and as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.kernels.contest import MB, Contest, Machine, Outcome, Turn, median
from bench.kernels.heads import LIGER, OURS, PLAIN, SPARSE, STUDENT

HEADINGS = (
    "what",
    "forward, ms",
    "forward and backward, ms (range)",
    "to plain",
    "memory, MB",
    "to plain",
    "of matrix rate",
    "of copy bandwidth",
)


class Verdict(NamedTuple):
    """A target: its figure, and the bound, an upper one or with `least` a lower one."""

    what: str
    figure: Callable[[Outcome, Machine], float]
    bound: float
    least: bool = False

    def line(self, outcome: Outcome, machine: Machine) -> str:
        """The text of the page; a figure that was not measured is not reached."""
        sense = "at least" if self.least else "at most"
        target = f"{self.what}: {sense} {self.bound:g}"
        try:
            found = self.figure(outcome, machine)
        except KeyError as missing:
            return f"* {target}: not measured ({missing.args[0]} is missing)"
        except ZeroDivisionError:
            return f"* {target}: not measured (too little to be seen)"
        reached = found >= self.bound if self.least else found <= self.bound
        return f"* {target}: {'yes' if reached else 'NO'} ({found:.3g})"


def to(name: str, part: str) -> Callable[[Outcome, Machine], float]:
    """Ratio of this project's median of a part of the turns to that of `name`."""
    return lambda outcome, _: median(outcome.turns[OURS], part) / median(outcome.turns[name], part)


def bandwidth(outcome: Outcome, machine: Machine) -> float:
    """This project's share of the copy bandwidth."""
    return outcome.contest.least_bytes / median(outcome.turns[OURS]) / machine.copied


def sparse_cost(outcome: Outcome, _: Machine) -> float:
    """Additional time of a sparse teacher over cross-entropy alone, as a ratio to that of a dense one."""
    sparse, dense, student = (median(outcome.turns[name]) for name in (SPARSE, OURS, STUDENT))
    return (sparse - student) / (dense - student)


HEADS = (
    Verdict("time, to plain", to(PLAIN, "both"), 0.9),
    Verdict("memory, to plain", to(PLAIN, "memory"), 1 / 8),
    Verdict(f"time, to {LIGER}", to(LIGER, "both"), 1.0),
)
HEADS_CUDA = (
    Verdict(f"time, to {LIGER}", to(LIGER, "both"), 1.0),
    Verdict(f"memory, to {LIGER}", to(LIGER, "memory"), 0.5),
)
ROWS_CUDA = (Verdict("of copy bandwidth", bandwidth, 0.85, least=True),)
CODEBOOKS = (Verdict("memory, relative to the plain form", to(PLAIN, "memory"), 0.25),)
LISTS = (Verdict("memory, to plain", to(PLAIN, "memory"), 1 / 4),)
SPARSES = (Verdict("cost of the teacher, relative to a dense one", sparse_cost, 0.1),)


def section(outcome: Outcome, machine: Machine, verdicts: Sequence[Verdict]) -> str:
    """Title, table, missing contenders, and the targets."""
    notes = [f"* {name}: not here ({reason})" for name, reason in outcome.missing.items()]
    notes += [f"* {name}: left out, as it {reason}" for name, reason in outcome.wrong.items()]
    notes += [verdict.line(outcome, machine) for verdict in verdicts]
    parts = [f"**{outcome.contest.title}**, {_dtype(outcome.contest)}", _table(outcome, machine), "\n".join(notes)]
    return "\n\n".join(filter(None, parts))


def rates(machine: Machine) -> str:
    """The machine's peak rates, to which shares refer."""
    return f"Copy bandwidth {machine.copied / 1e9:,.1f} GB/s, matrix rate {machine.multiplied / 1e9:,.0f} GFLOP/s."


def _dtype(contest: Contest) -> str:
    return str(contest.dtype).removeprefix("torch.")


def _table(outcome: Outcome, machine: Machine) -> str:
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(_cells(name, outcome, machine) for name in outcome.turns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(name: str, outcome: Outcome, machine: Machine) -> Iterator[str]:
    turns, contest = outcome.turns[name], outcome.contest
    took, whole = median(turns), [1e3 * turn.both for turn in turns]
    plain = outcome.turns.get(PLAIN)
    yield name
    yield f"{1e3 * median(turns, 'forward'):.4g}"
    yield f"{1e3 * took:.4g} ({min(whole):.4g} to {max(whole):.4g})"
    yield _ratio(turns, plain, "both")
    yield f"{median(turns, 'memory') / MB:,.1f}"
    yield _ratio(turns, plain, "memory")
    yield f"{contest.flops / took / machine.multiplied:.2f}" if contest.flops else ""
    yield f"{contest.least_bytes / took / machine.copied:.2f}"


def _ratio(turns: Sequence[Turn], plain: Sequence[Turn] | None, part: str) -> str:
    if plain is None or not median(plain, part):
        return ""
    return f"{median(turns, part) / median(plain, part):.3f}"


def data(outcome: Outcome) -> dict[str, Any]:
    """All turns, as numbers."""
    turns = {name: [turn._asdict() for turn in each] for name, each in outcome.turns.items()}
    contest = outcome.contest
    facts = {"dtype": _dtype(contest), "flops": contest.flops, "least_bytes": contest.least_bytes}
    return {"contest": contest.title, **facts, "turns": turns, "missing": outcome.missing, "wrong": outcome.wrong}
