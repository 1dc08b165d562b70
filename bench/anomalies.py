"""Detection of anomalies by students that reconstruct the features of an encoder, by encoder and losses.

python -m bench.anomalies [--set digits] [--set FILE.npz] [--write docs/quality.md]

A set is as in `bench.quality`. `one class`: one of the classes is normal, another one for every seed, and the test
images of the others are anomalous. `defects`: all training images are normal, and every second test image gets a square
of random pixels, whose mask is known. Nothing was tuned to the sets.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.quality import CLASSES, DIGITS, TEACHER, Size, set_parser, size_of, write_set
from bench.report import mean_cells, replace_part
from bench.students import Document, train, training_pool

ONE_CLASS, DEFECTS = "one class", "defects"
METRICS = {ONE_CLASS: ("image_auroc",), DEFECTS: ("image_auroc", "pixel_auroc", "pro")}
LABELS, VIEWS, RANDOM = "labels of all classes", "views (ntxent)", "random weights"
RECONSTRUCTION: Document = {"kind": "feature-reconstruction"}
COHERENCE: Document = {"kind": "prototype-coherence"}
FULL = [RECONSTRUCTION, COHERENCE]
ROWS: dict[str, tuple[str, list[Document]]] = {
    "both losses": (LABELS, FULL),
    "without mining (gamma 0)": (LABELS, [{**RECONSTRUCTION, "gamma": 0.0}, COHERENCE]),
    "without prototype-coherence": (LABELS, [RECONSTRUCTION]),
    f"both losses, encoder of {VIEWS}": (VIEWS, FULL),
    f"both losses, encoder of {RANDOM}": (RANDOM, FULL),
}
"""What the encoder was trained on, and the losses, by the names of the rows."""
LAYERS = [["stages.1.0"], ["stages.1.1"]]
ONE_CLASS_EPOCHS, BATCH = 60, 32
"""Of one class, which has a tenth of the images; of defects as many epochs as the size has."""
Table = dict[str, list[list[float]]]
"""By row the values of `METRICS` for every seed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    options = set_parser("python -m bench.anomalies", "Compares detectors of anomalies.").parse_args(arguments)
    size, given = size_of(options), arguments if arguments is not None else sys.argv[1:]
    for name in options.set or [DIGITS]:
        begun = time.monotonic()
        table = compare(name, size)
        text = section(name, size, table, time.monotonic() - begun, "python -m bench.anomalies " + " ".join(given))
        print(text)
        if options.write:
            replace_part(options.write, f"anomalies-{Path(name).stem}", text)


def compare(name: str, size: Size) -> Table:
    """The metrics of all rows, for every seed."""
    table: Table = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_set(name, folder, size)
        write_defects(folder)
        with training_pool() as pool:
            seeds = range(1, size.seeds + 1)
            encoders = [(what, seed) for seed in seeds for what in (LABELS, VIEWS, RANDOM)]
            made = [pool.submit(_encode, folder, what, size, seed) for what, seed in encoders]
            for result in made:
                result.result()
            jobs = [(row, seed) for seed in seeds for row in ROWS]
            waiting = [pool.submit(_detect, folder, row, size, seed) for row, seed in jobs]
            for (row, _), result in zip(jobs, waiting, strict=True):
                table.setdefault(row, []).append(result.result())
    return table


def write_defects(folder: Path) -> None:
    """Write `normal.npz`, the training images in `folder` without labels, and `defects.npz`, its test images with
    squares of random pixels, a third of a side wide, in every second one, with labels and masks."""
    random = np.random.default_rng(0)
    with np.load(folder / "train.npz") as archive:
        np.savez(folder / "normal.npz", x=archive["x"])
    with np.load(folder / "test.npz") as archive:
        images = archive["x"].copy()
    side, width = images.shape[1], max(2, images.shape[1] // 3)
    masks = np.zeros(images.shape[:3], np.uint8)
    for number in range(1, len(images), 2):
        top, left = random.integers(0, side - width + 1, 2)
        square = np.s_[number, top : top + width, left : left + width]
        images[square] = random.integers(0, 256, images[square].shape)
        masks[square] = 1
    np.savez(folder / "defects.npz", x=images, y=masks.any((1, 2)).astype(np.int64), mask=masks)


def encoder_of(what: str, size: Size, seed: int) -> Document:
    """The job of an encoder."""
    document: Document = {"student": TEACHER, "evaluation": {"every_epochs": 10_000}, "export": ["safetensors"]}
    recipe: Document = {
        **{"epochs": size.teacher_epochs, "batch_size": 128, "optimizer": {"kind": "adamw", "lr": 2e-3}},
        "schedule": {"kind": "cosine"},
    }
    if what == VIEWS:
        augment = [{"kind": "resized-crop", "least_area": 0.3}, {"kind": "color-jitter"}]
        data: Document = {"train": "train", "eval": "test", "augment": augment}
        document |= {"task": "self-supervised", "embedding": {"dimensions": 64}}
        recipe["losses"] = [{"kind": "ntxent"}]
    else:
        data = {"train": "train", "eval": "test", "classes": CLASSES}
        recipe["losses"] = [{"kind": "cross-entropy"}]
    if what == RANDOM:
        recipe |= {"max_steps": 1, "optimizer": {"kind": "sgd", "lr": 1e-12}}
    return document | {"data": data, "recipe": recipe, "seed": seed}


def job_of(row: str, setting: str, size: Size, seed: int) -> Document:
    """The job of a detector."""
    one_class = setting == ONE_CLASS
    data = {"train": "train", "eval": "test", "normal_classes": [str((seed - 1) % CLASSES)]}
    return {
        "task": "anomaly-detection",
        "data": data if one_class else {"train": "normal", "eval": "defects", "mask_key": "mask"},
        "student": {"architecture": "inp-former", "model": "encoder", "layers": LAYERS, "map_size": 32},
        "recipe": {
            **{"losses": ROWS[row][1], "epochs": ONE_CLASS_EPOCHS if one_class else size.epochs, "batch_size": BATCH},
            **{"optimizer": {"kind": "adamw", "lr": 1e-3, "weight_decay": 1e-4}},
            "schedule": {"kind": "cosine", "warmup_steps": 50, "final_ratio": 0.1},
        },
        "evaluation": {"every_epochs": 10_000},
        "export": ["safetensors"],
        "seed": seed,
    }


def _encode(folder: Path, what: str, size: Size, seed: int) -> None:
    name = _encoder_name(what, seed)
    train(name, encoder_of(what, size, seed), _files(folder), folder / name, folder / "answers")


def _detect(folder: Path, row: str, size: Size, seed: int) -> list[float]:
    found: list[float] = []
    inputs = _files(folder) | {"encoder": folder / _encoder_name(ROWS[row][0], seed) / "bundle"}
    for setting, metrics in METRICS.items():
        name = f"{row}-{setting}-{seed}".replace(" ", "_")
        report, _ = train(name, job_of(row, setting, size, seed), inputs, folder / name, folder / "answers")
        found += [report["student"][metric] for metric in metrics]
    return found


def _files(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.npz" for name in ("train", "test", "normal", "defects")}


def _encoder_name(what: str, seed: int) -> str:
    return f"encoder-{what}-{seed}".replace(" ", "_")


def section(name: str, size: Size, table: Table, seconds: float, command: str) -> str:
    """The text and the table of a set."""
    what = "scikit-learn's digits (8 x 8)" if name == DIGITS else f"`{Path(name).name}`"
    smaller = f", shrunk {size.shrink} times" if size.shrink > 1 else ""
    columns = [f"{setting}: {metric}" for setting, metrics in METRICS.items() for metric in metrics]
    lines = [
        f"On {what}{smaller}, the first {size.train} training images. Encoders are `wide-resnet` 16-2, trained on "
        f"{LABELS} ({size.teacher_epochs} epochs), so that they know the anomalous classes, unless a row says "
        f"otherwise; {ONE_CLASS_EPOCHS} epochs of one class, {size.epochs} of all for defects. Mean and standard "
        f"deviation over {size.seeds} seeds, each with another normal class. The run took {seconds / 60:.0f} minutes.",
        "",
        f"`{command}`",
        "",
        f"| student | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {row} | {' | '.join(mean_cells(results))} |" for row, results in table.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
