"""Vectors of images of unseen classes, by loss: alone, and with a teacher of wider vectors.

python -m bench.image_embedding [--set digits] [--set FILE.npz] [--write docs/quality.md]

A set is as in `bench.quality`; its training images are used. Half of the classes are drawn from the seed and held out,
so that every seed has other unseen classes, and a teacher of its own for these; nothing was tuned to the sets.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.quality import DIGITS, STUDENT, TEACHER, Size, set_parser, size_of, write_set
from bench.report import mean_cells, replace_part
from bench.students import Document, learns_from_a_teacher, train, training_pool

METRICS = ("map_at_r", "recall_at_1", "auc", "tar_at_far_1e-2", "class_mean_accuracy")
COSFACE: Document = {"kind": "normface", "scale": 32.0, "learn_scale": False, "margin": "cosface"}
NORMFACE: Document = {"kind": "normface"}
DISTANCE: Document = {"kind": "embedding-distance", "distance": "cosine"}
TEACHERS = "teacher (normface)"
BY_CLASS = "normface, 8 samples per class"
LOSSES: dict[str, list[Document]] = {
    "normface": [NORMFACE],
    BY_CLASS: [NORMFACE],
    "normface, cosface margin": [COSFACE],
    "unpg": [{"kind": "unpg", "scale": 32.0, "margin": "cosface"}],
    "cfcd": [{"kind": "cfcd"}],
    "normface + embedding-distance": [NORMFACE, DISTANCE],
    "normface + similarity-matrix": [NORMFACE, {"kind": "similarity-matrix", "compare": "mse"}],
    "normface + rkd": [NORMFACE, {"kind": "rkd"}],
    "embedding-distance alone": [DISTANCE],
}
"""Losses of the students by the names of the rows."""
Table = dict[str, list[list[float]]]
"""By row the values of `METRICS` for every seed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    options = set_parser("python -m bench.image_embedding", "Compares losses of vectors.").parse_args(arguments)
    size, given = size_of(options), arguments if arguments is not None else sys.argv[1:]
    for name in options.set or [DIGITS]:
        begun = time.monotonic()
        table = compare(name, size)
        command = "python -m bench.image_embedding " + " ".join(given)
        text = section(name, size, table, time.monotonic() - begun, command)
        print(text)
        if options.write:
            replace_part(options.write, f"vectors-{Path(name).stem}", text)


def compare(name: str, size: Size) -> Table:
    """The metrics of teachers and students on the unseen classes of each seed."""
    table: Table = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_set(name, folder, size)
        unseen = classes_of(folder) // 2
        with training_pool() as pool:
            seeds = range(1, size.seeds + 1)
            made = [
                pool.submit(_train, folder, f"teacher-{seed}", job_of([NORMFACE], size, unseen, seed)) for seed in seeds
            ]
            table[TEACHERS] = [result.result() for result in made]
            jobs = [(row, seed) for seed in seeds for row in LOSSES]
            waiting = [
                pool.submit(
                    _train, folder, f"{row}-{seed}".replace(" ", "_"), job_of(LOSSES[row], size, unseen, seed, row)
                )
                for row, seed in jobs
            ]
            for (row, _), result in zip(jobs, waiting, strict=True):
                table.setdefault(row, []).append(result.result())
    return table


def classes_of(folder: Path) -> int:
    """The number of classes of the training images."""
    return len(np.unique(np.load(folder / "train.npz")["y"]))


def job_of(losses: list[Document], size: Size, unseen: int, seed: int, row: str | None = None) -> Document:
    """The job of a student, or without a `row` of the teacher, on the classes of a seed; `unseen` are held out."""
    is_teacher = row is None
    document: Document = {
        "task": "image-embedding",
        "data": {"train": "train", "unseen_classes": unseen},
        "student": TEACHER if is_teacher else STUDENT,
        "embedding": {"dimensions": 128 if is_teacher else 32, "normalise": True},
        "recipe": {
            **{"losses": losses, "epochs": size.teacher_epochs if is_teacher else size.epochs, "batch_size": 40},
            **{"optimizer": {"kind": "adamw", "lr": 2e-3, "weight_decay": 0.05}, "schedule": {"kind": "cosine"}},
            **({"samples_per_class": 8} if row == BY_CLASS else {}),
        },
        "evaluation": {"every_epochs": 10_000},
        "export": ["safetensors"],
        "seed": seed,
    }
    taught = {"teachers": [{"model": f"teacher-{seed}"}]}
    return document | (taught if learns_from_a_teacher(document) else {})


def _train(folder: Path, name: str, document: Document) -> list[float]:
    inputs = {"train": folder / "train.npz"}
    inputs |= {one["model"]: folder / one["model"] / "bundle" for one in document.get("teachers", ())}
    report, _ = train(name, document, inputs, folder / name, folder / "answers")
    return [report["student"][metric] for metric in METRICS]


def section(name: str, size: Size, table: Table, seconds: float, command: str) -> str:
    """The text and the table of a set."""
    what = "scikit-learn's digits (8 x 8)" if name == DIGITS else f"`{Path(name).name}`"
    smaller = f", shrunk {size.shrink} times" if size.shrink > 1 else ""
    lines = [
        f"On {what}{smaller}: the first {size.train} training images, of which those of one half of the classes are "
        f"trained on and those of the other half evaluated, drawn by each of {size.seeds} seeds. Teachers are "
        f"`wide-resnet` 16-2 with 128 dimensions ({size.teacher_epochs} epochs), students `wide-resnet` 10-1 with 32 "
        f"({size.epochs} epochs); mean and standard deviation over the seeds. The run took {seconds / 60:.0f} minutes.",
        "",
        f"`{command}`",
        "",
        f"| losses | {' | '.join(METRICS)} |",
        "|---" * (len(METRICS) + 1) + "|",
        *(f"| {row} | {' | '.join(mean_cells(results))} |" for row, results in table.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
