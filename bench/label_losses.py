"""Losses of labels where they are meant to help: with wrong labels, with a rare class, and in ensembles of losses.

python -m bench.label_losses [--set digits] [--set FILE.npz] [--write docs/quality.md]

A set is as in `bench.quality`. Students, steps and first weights are the same within a table; nothing but the loss
differs, and none of the settings was tuned to the sets. Labels are made wrong, and classes rare, from the seed.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.quality import CLASSES, DIGITS, STUDENT, Images, Size, read_set, set_parser, size_of
from bench.report import mean_cells, replace_part
from bench.students import Document, train, training_pool

CROSS_ENTROPY: Document = {"kind": "cross-entropy"}
NOISES = (0.0, 0.2, 0.4)
"""Shares of training labels that are replaced by another class."""
RARE = 0.05
"""Share of the training images that are of the rare class."""
UNDER_NOISE: dict[str, list[Document]] = {
    "cross-entropy": [CROSS_ENTROPY],
    "comp-sum, tau 1.7": [{"kind": "comp-sum", "tau": 1.7}],
    "comp-sum, tau 2 (mean absolute error)": [{"kind": "comp-sum", "tau": 2.0}],
    "z-loss": [{"kind": "z-loss"}],
    "ldr": [{"kind": "ldr"}],
    "aldr": [{"kind": "aldr"}],
}
"""Losses of the table of wrong labels, by row."""
OF_A_RARE_CLASS: dict[str, list[Document]] = {
    "cross-entropy": [CROSS_ENTROPY],
    "anyloss, f-beta": [CROSS_ENTROPY, {"kind": "anyloss"}],
    "anyloss, g-mean": [CROSS_ENTROPY, {"kind": "anyloss", "metric": "g-mean"}],
    "anyloss, balanced-accuracy": [CROSS_ENTROPY, {"kind": "anyloss", "metric": "balanced-accuracy"}],
    "anyloss, f-beta, alone": [{"kind": "anyloss"}],
}
"""Losses of the table of a rare class."""
SVM: Document = {"kind": "l2-svm", "regularisation": 0.0}
OF_MARGINS: dict[str, list[Document]] = {
    "ensloss": [{"kind": "ensloss"}],
    "logistic (cross-entropy)": [CROSS_ENTROPY],
    "exponential (comp-sum, tau 0)": [{"kind": "comp-sum", "tau": 0.0}],
    "hinge": [{**SVM, "hinge": "absolute", "form": "crammer-singer"}],
    "squared hinge": [{**SVM, "form": "crammer-singer"}],
}
"""Losses of the table of ensembles: calibrated losses of the margin, each for itself or drawn."""


class Comparison(NamedTuple):
    """One table."""

    title: str
    losses: Mapping[str, list[Document]]
    columns: tuple[str, ...]
    classes: int


def tables(size: Size) -> dict[str, Comparison]:
    """The tables by the names of their data."""
    noisy = tuple(f"{100 * noise:.0f} % wrong" for noise in NOISES)
    return {
        "noise": Comparison("Accuracy in %, with wrong labels in training", UNDER_NOISE, noisy, CLASSES),
        "rare": Comparison(
            f"One class against all others, {100 * RARE:.0f} % of the training images of that class, in %",
            OF_A_RARE_CLASS,
            ("accuracy", "F1 of the class", "geometric mean of the recalls"),
            2,
        ),
        "margins": Comparison("Odd against even classes, in %", OF_MARGINS, ("accuracy",), 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    options = set_parser("python -m bench.label_losses", "Compares losses of labels.").parse_args(arguments)
    size, given = size_of(options), arguments if arguments is not None else sys.argv[1:]
    for name in options.set or [DIGITS]:
        begun = time.monotonic()
        found = compare(name, size)
        command = "python -m bench.label_losses " + " ".join(given)
        text = section(name, size, found, time.monotonic() - begun, command)
        print(text)
        if options.write:
            replace_part(options.write, f"labels-{Path(name).stem}", text)


Results = dict[str, dict[str, list[list[float]]]]
"""By table and row the values of its columns for every seed."""


def compare(name: str, size: Size) -> Results:
    """All tables of a set."""
    arrays, found = read_set(name, size), {}
    with tempfile.TemporaryDirectory() as scratch, training_pool() as pool:
        for table, what in tables(size).items():
            jobs = [(row, seed) for seed in range(1, size.seeds + 1) for row in what.losses]
            waiting = []
            for row, seed in jobs:
                folder = Path(scratch) / f"{table}-{list(what.losses).index(row)}-{seed}"
                folder.mkdir()
                waiting.append(pool.submit(_values, table, what, row, arrays, size, seed, folder))
            rows: dict[str, list[list[float]]] = {row: [] for row in what.losses}
            for (row, _), result in zip(jobs, waiting, strict=True):
                rows[row].append(result.result())
            found[table] = rows
    return found


def _values(
    table: str, what: Comparison, row: str, arrays: Mapping[str, Images], size: Size, seed: int, folder: Path
) -> list[float]:
    """The columns of a row for one seed, in %."""
    if table == "noise":
        return [
            _accuracy(_trained(what, row, wrong(arrays, size, noise, seed), size, seed, folder)) for noise in NOISES
        ]
    data = rare(arrays, size, seed) if table == "rare" else odd(arrays, size)
    report = _trained(what, row, data, size, seed, folder)
    if table == "margins":
        return [_accuracy(report)]
    others, own = report["per_class"]
    return [_accuracy(report), 100 * f1(others, own), 100 * math.sqrt(own["student"] * others["student"])]


def f1(others: Mapping[str, Any], own: Mapping[str, Any]) -> float:
    """Harmonic mean of precision and recall of one class, from both classes' samples and recalls."""
    found = own["student"] * own["samples"]
    mistaken = (1 - others["student"]) * others["samples"]
    return 2 * found / (found + mistaken + own["samples"]) if found else 0.0


def _accuracy(report: Document) -> float:
    return 100 * float(report["student"]["accuracy"])


def _trained(
    what: Comparison, row: str, data: Mapping[str, Images], size: Size, seed: int, folder: Path
) -> dict[str, Any]:
    place = folder / str(len(list(folder.iterdir())))
    place.mkdir()
    for part in ("train", "test"):
        np.savez(place / part, x=data[f"x_{part}"], y=data[f"y_{part}"])
    inputs = {part: place / f"{part}.npz" for part in ("train", "test")}
    document = job_of(what.losses[row], what.classes, size, seed)
    return train(row, document, inputs, place / "out", place / "answers").report


def job_of(losses: Sequence[Document], classes: int, size: Size, seed: int) -> Document:
    """The job of a row for a seed."""
    return {
        "data": {"train": "train", "eval": "test", "classes": classes},
        "student": STUDENT,
        "recipe": {
            "losses": list(losses),
            "epochs": size.epochs,
            "batch_size": 64,
            "optimizer": {"kind": "adamw", "lr": 2e-3, "weight_decay": 0.05},
            "schedule": {"kind": "cosine"},
            "clip_norm": 5.0,
        },
        "evaluation": {"every_epochs": 10_000},
        "export": ["safetensors"],
        "seed": seed,
    }


def wrong(arrays: Mapping[str, Images], size: Size, noise: float, seed: int) -> dict[str, Images]:
    """The first training images, of which the share `noise` has the label of another class."""
    random = np.random.default_rng(seed)
    x, y = arrays["x_train"][: size.train], arrays["y_train"][: size.train].astype(np.int64)
    chosen = random.permutation(len(y))[: round(noise * len(y))]
    y = y.copy()
    y[chosen] = (y[chosen] + random.integers(1, CLASSES, len(chosen))) % CLASSES
    return {"x_train": x, "y_train": y, **_test(arrays, arrays["y_test"])}


def rare(arrays: Mapping[str, Images], size: Size, seed: int) -> dict[str, Images]:
    """The first training images of all classes but one, and as many of that one, 1, that it is `RARE`; which one it is
    depends on the seed. Test images are all."""
    own = seed % CLASSES
    x, y = arrays["x_train"][: size.train], arrays["y_train"][: size.train] == own
    others = np.flatnonzero(~y)
    kept = np.flatnonzero(y)[: max(2, round(RARE / (1 - RARE) * len(others)))]
    order = np.sort(np.concatenate([others, kept]))
    return {"x_train": x[order], "y_train": y[order].astype(np.int64), **_test(arrays, arrays["y_test"] == own)}


def odd(arrays: Mapping[str, Images], size: Size) -> dict[str, Images]:
    """The first training images, by whether their class's number is odd."""
    labels = (arrays["y_train"][: size.train] % 2).astype(np.int64)
    return {"x_train": arrays["x_train"][: size.train], "y_train": labels, **_test(arrays, arrays["y_test"] % 2)}


def _test(arrays: Mapping[str, Images], labels: Images) -> dict[str, Images]:
    return {"x_test": arrays["x_test"], "y_test": labels.astype(np.int64)}


def section(name: str, size: Size, found: Results, seconds: float, command: str) -> str:
    """The text and the tables of a set."""
    what = "scikit-learn's digits (8 x 8)" if name == DIGITS else f"`{Path(name).name}`"
    smaller = f", shrunk {size.shrink} times" if size.shrink > 1 else ""
    lines = [
        f"On {what}{smaller}: `wide-resnet` 10-1 on the first {size.train} training images, {size.epochs} epochs, "
        f"adamw; test images have their own labels. Mean and standard deviation over {size.seeds} seeds. The run took "
        f"{seconds / 60:.0f} minutes.",
        "",
        f"`{command}`",
    ]
    for table, about in tables(size).items():
        lines += ["", f"{about.title}:", "", f"| loss | {' | '.join(about.columns)} |"]
        lines += ["|---" * (len(about.columns) + 1) + "|"]
        lines += [f"| {row} | {' | '.join(mean_cells(values, 1))} |" for row, values in found[table].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
