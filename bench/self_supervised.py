"""Frozen features of backbones that were trained without labels, and classifiers of few labels that start from them.

python -m bench.self_supervised [--set digits] [--set FILE.npz] [--write docs/quality.md]

A set is as in `bench.quality`: its training images are used without their labels, and probes are fitted to every other
test image of each class. The classifiers have the labels of the first `LABELLED` training images. Nothing was tuned to
the sets.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.quality import DIGITS, STUDENT, Size, set_parser, size_of, write_set
from bench.report import mean_cells, replace_part
from bench.students import Document, train, training_pool
from worker.metrics.probes import probes

LABELLED, BATCH = 100, 128
PROBES = ("linear_accuracy", "knn_accuracy", "bayes_accuracy")
METRICS = (*PROBES, "view_recall_at_1", "tuned_accuracy")
PIXELS, UNTRAINED = "pixels", "random weights"
ROWS: dict[str, Document] = {
    UNTRAINED: {"losses": [{"kind": "ntxent"}]},
    "ntxent": {"losses": [{"kind": "ntxent"}]},
    "ntxent, temperature 0.1": {"losses": [{"kind": "ntxent", "temperature": 0.1}]},
    "ntxent without projection": {"losses": [{"kind": "ntxent", "projection": "none"}]},
    "ntxent, pseudo labels": {"losses": [{"kind": "ntxent"}], "pseudo_labels": {}},
    "ntxent, pseudo labels of 4 times as many clusters": {
        "losses": [{"kind": "ntxent"}],
        "pseudo_labels": {"clusters": 4 * BATCH},
    },
}
"""What the recipes of the rows have, by their names."""
CHANGES: list[Document] = [{"kind": "resized-crop", "least_area": 0.3}, {"kind": "color-jitter"}]
COLOURED: list[Document] = [{"kind": "flip"}, {"kind": "grayscale"}]
"""For images of three channels, which mirroring does not change either."""
Table = dict[str, list[list[float]]]
"""By row the values of `METRICS` for every seed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    options = set_parser("python -m bench.self_supervised", "Compares backbones without labels.").parse_args(arguments)
    size, given = size_of(options), arguments if arguments is not None else sys.argv[1:]
    for name in options.set or [DIGITS]:
        begun = time.monotonic()
        table = compare(name, size)
        command = "python -m bench.self_supervised " + " ".join(given)
        text = section(name, size, table, time.monotonic() - begun, command)
        print(text)
        if options.write:
            replace_part(options.write, f"self-supervised-{Path(name).stem}", text)


def compare(name: str, size: Size) -> Table:
    """The metrics of pixels and of all rows, for every seed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_set(name, folder, size)
        with np.load(folder / "train.npz") as archive:
            np.savez(folder / "few.npz", x=archive["x"][:LABELLED], y=archive["y"][:LABELLED])
            coloured = archive["x"].ndim == 4
        table: Table = {PIXELS: [_of_pixels(folder / "test.npz")]}
        with training_pool() as pool:
            jobs = [(row, seed) for seed in range(1, size.seeds + 1) for row in ROWS]
            waiting = [pool.submit(_train, folder, row, size, seed, coloured) for row, seed in jobs]
            for (row, _), result in zip(jobs, waiting, strict=True):
                table.setdefault(row, []).append(result.result())
    return table


def job_of(row: str, size: Size, seed: int, *, coloured: bool) -> Document:
    """The job of a backbone."""
    recipe = {"epochs": size.epochs, "batch_size": BATCH, "optimizer": {"kind": "adamw", "lr": 2e-3}}
    if row == UNTRAINED:
        recipe |= {"max_steps": 1, "optimizer": {"kind": "sgd", "lr": 1e-12}}
    else:
        recipe["schedule"] = {"kind": "cosine"}
    return {
        "task": "self-supervised",
        "data": {"train": "train", "eval": "test", "augment": [*CHANGES, *(COLOURED if coloured else [])]},
        "student": STUDENT,
        "embedding": {"dimensions": 64},
        "recipe": {**recipe, **ROWS[row]},
        "evaluation": {"every_epochs": 10_000},
        "export": ["safetensors"],
        "seed": seed,
    }


def tuning_of(seed: int) -> Document:
    """The job of a classifier that starts from a backbone."""
    return {
        "task": "image-classification",
        "data": {"train": "few", "eval": "test", "classes": 10},
        "student": {"architecture": "pretrained", "model": "backbone"},
        "recipe": {
            **{"losses": [{"kind": "cross-entropy"}], "epochs": 60, "batch_size": 32},
            **{"optimizer": {"kind": "adamw", "lr": 2e-3}, "schedule": {"kind": "cosine"}},
        },
        "evaluation": {"every_epochs": 10_000},
        "export": ["safetensors"],
        "seed": seed,
    }


def _train(folder: Path, row: str, size: Size, seed: int, coloured: bool) -> list[float]:
    inputs = {name: folder / f"{name}.npz" for name in ("train", "test", "few")}
    name = f"{row}-{seed}".replace(" ", "_")
    report, _ = train(name, job_of(row, size, seed, coloured=coloured), inputs, folder / name, folder / "answers")
    inputs["backbone"] = folder / name / "bundle"
    tuned, _ = train(f"{name}-tuned", tuning_of(seed), inputs, folder / f"{name}-tuned", folder / "answers")
    return [*(report["student"][metric] for metric in METRICS[:-1]), tuned["student"]["accuracy"]]


def _of_pixels(path: Path) -> list[float]:
    """The probes of the raw pixels; there are no views of them and no classifier."""
    with np.load(path) as archive:
        rows, labels = torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"])
    found = probes(rows.flatten(1).float(), labels)
    return [*(float(found[name]) for name in PROBES), float("nan"), float("nan")]


def section(name: str, size: Size, table: Table, seconds: float, command: str) -> str:
    """The text and the table of a set."""
    what = "scikit-learn's digits (8 x 8)" if name == DIGITS else f"`{Path(name).name}`"
    smaller = f", shrunk {size.shrink} times" if size.shrink > 1 else ""
    seeds = f"Mean and standard deviation over {size.seeds} seeds" if size.seeds > 1 else "One seed"
    lines = [
        f"On {what}{smaller}: the first {size.train} training images without their labels, in batches of {BATCH}; "
        f"`wide-resnet` 10-1 with 64 dimensions, {size.epochs} epochs. `tuned_accuracy` is that of a classifier that "
        f"starts from the backbone and has {LABELLED} labels; after random weights it is one from scratch. "
        f"{seeds}. The run took {seconds / 60:.0f} minutes.",
        "",
        f"`{command}`",
        "",
        f"| backbone | {' | '.join(METRICS)} |",
        "|---" * (len(METRICS) + 1) + "|",
        *(f"| {row} | {' | '.join(_cells(row, results))} |" for row, results in table.items()),
    ]
    return "\n".join(lines)


def _cells(row: str, results: list[list[float]]) -> list[str]:
    if row != PIXELS:
        return mean_cells(results)
    return ["" if value != value else f"{value:.3f}" for value in results[0]]


if __name__ == "__main__":
    main()
