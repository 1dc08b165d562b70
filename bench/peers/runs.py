"""Whole trainings by all engines: each in a separate process, and in turn, so that all have the same conditions."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bench.peers.absence import why
from bench.peers.engines import ENGINES, Outcome, Taken
from bench.peers.ground import SMALL, TINY, Ground, Objective, Size, lay
from worker.transformers_library import library

OURS = "stillhouse"
RIVALS: dict[Objective, tuple[str, ...]] = {
    "kd": ("a bare loop", "transformers.Trainer"),
    "mse": ("a bare loop", "sentence-transformers"),
}
SIZES = {"tiny": TINY, "small": SMALL}


class Ran(NamedTuple):
    """One engine's trainings."""

    losses: list[float]
    weights: dict[str, np.ndarray]
    rounds: list[Taken]


class Run(NamedTuple):
    """One training by all engines; for an engine that failed, the reason."""

    objective: Objective
    name: str
    """Name of the size."""
    size: Size
    engines: dict[str, Ran | str]


def compare(sizes: dict[str, Size], rounds: int, threads: int) -> Iterator[Run]:
    """Every objective at every size."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, size in sizes.items():
            for objective, rivals in RIVALS.items():
                ground = lay(Path(scratch) / f"{objective}-{name}", objective, size)
                yield Run(objective, name, size, _race(ground, (OURS, *rivals), rounds, threads))


def _race(ground: Ground, names: Sequence[str], rounds: int, threads: int) -> dict[str, Ran | str]:
    """A first training for the losses and the weights, which also warms up; then timed ones in turn."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when a process loads its libraries
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, Ran | str] = {}
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, spawn, initializer=_prepare, initargs=(threads,)))
            for name in names
        }
        for name in names:
            try:
                first = pools[name].submit(_train, name, ground, True).result()
                found[name] = Ran(first.losses, first.weights, [])
            except Exception as error:  # a library may raise anything if it can't run
                found[name] = why(error)
        for _ in range(rounds):
            for name, ran in found.items():
                if isinstance(ran, Ran):
                    ran.rounds.append(pools[name].submit(_train, name, ground, False).result().step)
    return found


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    library()  # silenced
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sys.stdout = io.StringIO()  # the libraries print


def _train(name: str, ground: Ground, curve: bool) -> Outcome:
    return ENGINES[name](ground, curve)


def loss_gap(ours: Ran, theirs: Ran) -> float:
    """Largest relative difference of the losses of one step."""
    pairs = zip(ours.losses, theirs.losses, strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def weight_gap(ours: Ran, theirs: Ran) -> float:
    """Largest difference of one weight after the last step."""
    if ours.weights.keys() != theirs.weights.keys():
        raise ValueError(f"weights of different names: {sorted(ours.weights.keys() ^ theirs.weights.keys())[:3]}")
    return max(float(np.abs(ours.weights[name] - theirs.weights[name]).max()) for name in ours.weights)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the rounds of the ratio of this trainer's time to the peer's."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
