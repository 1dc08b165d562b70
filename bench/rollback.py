"""Fine-tuning of a network that was pretrained on other classes: rolled back period by period, or in one go.

python -m bench.rollback [--set digits] [--set FILE.npz] [--write docs/quality.md]

A set is that of `bench.quality`. A `wide-resnet` 10-1 is trained on all images of six of the ten classes, and then
fine-tuned on a few images of the other four, in as many steps by each recipe; its last layer begins anew.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality import DIGITS, STUDENT, Images, Size, read_set, set_parser, size_of
from bench.report import mean_and_spread, replace_part
from bench.students import Document, train, training_pool

OLD_CLASSES, NEW_CLASSES = 6, 4
PERIODS = 4
PRETRAINED = {"architecture": "pretrained", "model": "pretrained"}
RECIPES: dict[str, tuple[Document, Document]] = {
    "from scratch": (STUDENT, {"lr": 0.05}),
    "fine-tuned": (PRETRAINED, {"lr": 0.01}),
    "fine-tuned, rate of scratch": (PRETRAINED, {"lr": 0.05}),
    "rolled back": (PRETRAINED, {"lr": 0.01, "periods": PERIODS}),
}
"""Students, their learning rates, and the periods of `rollback`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    parser = set_parser("python -m bench.rollback", "Compares ways of fine-tuning on new classes.")
    options = parser.parse_args(arguments)
    size = size_of(options)
    command = "python -m bench.rollback " + " ".join(arguments if arguments is not None else sys.argv[1:])
    for name in options.set or [DIGITS]:
        text = _section(name, size, compare(name, size), command.strip())
        print(text)
        if options.write:
            replace_part(options.write, f"rollback-{Path(name).stem}", text)


def compare(name: str, size: Size) -> dict[str, list[float]]:
    """Accuracies on the new classes by recipe and seed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_sets(read_set(name, size), folder, size)
        with training_pool() as pool:
            old = _job("old", STUDENT, {"lr": 0.05}, size.teacher_epochs, 0)
            pool.submit(_train, folder, "pretrained", old).result()
            waiting = {
                (recipe, seed): pool.submit(_train, folder, f"{number}-{seed}", _new(recipe, size, seed))
                for seed in range(size.seeds)
                for number, recipe in enumerate(RECIPES)
            }
            table: dict[str, list[float]] = {}
            for (recipe, _), future in waiting.items():
                table.setdefault(recipe, []).append(future.result())
    return table


def _write_sets(arrays: dict[str, Images], folder: Path, size: Size) -> None:
    """Archives of the old classes, and of the new ones with labels from 0."""
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"].astype(np.int64)
        old, most = y < OLD_CLASSES, size.train if part == "train" else None
        np.savez(folder / f"old-{part}", x=x[old], y=y[old])
        np.savez(folder / f"new-{part}", x=x[~old][:most], y=(y[~old] - OLD_CLASSES)[:most])


def _new(recipe: str, size: Size, seed: int) -> Document:
    student, settings = RECIPES[recipe]
    return _job("new", student, settings, size.epochs, seed + 1)


def _job(classes: str, student: Document, settings: Document, epochs: int, seed: int) -> Document:
    """A job of `epochs` in all, of which each period has a part."""
    periods = settings.get("periods", 1)
    recipe: dict[str, Any] = {
        "losses": [{"kind": "cross-entropy"}],
        "epochs": epochs // periods,
        "batch_size": 32,
        "optimizer": {"kind": "sgd", "lr": settings["lr"], "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        "schedule": {"kind": "cosine"},
        "clip_norm": 5.0,
    }
    if periods > 1:
        recipe["method"] = {"kind": "rollback", "periods": periods}
    count = OLD_CLASSES if classes == "old" else NEW_CLASSES
    return {
        "data": {"train": f"{classes}-train", "eval": f"{classes}-test", "classes": count},
        "student": student,
        "recipe": recipe,
        "evaluation": {"every_epochs": 10_000},
        "export": ["safetensors"],
        "seed": seed,
    }


def _train(folder: Path, name: str, document: Document) -> float:
    names = [f"{classes}-{part}" for classes in ("old", "new") for part in ("train", "test")]
    inputs = {name: folder / f"{name}.npz" for name in names}
    inputs["pretrained"] = folder / "pretrained" / "bundle"
    report, _ = train(name, document, inputs, folder / name, folder / "cache")
    accuracy: float = report["student"]["accuracy"]
    return accuracy


def _section(name: str, size: Size, table: dict[str, list[float]], command: str) -> str:
    what = "scikit-learn's digits (8 x 8)" if name == DIGITS else f"`{Path(name).name}`, shrunk {size.shrink} times"
    lines = [
        f"On {what}: a `wide-resnet` 10-1, trained for {size.teacher_epochs} epochs on all images of {OLD_CLASSES} "
        f"classes, learns the other {NEW_CLASSES} from their first {size.train} images in {size.epochs} epochs, which "
        f"are {PERIODS} periods where it is rolled back; mean and standard deviation over {size.seeds} seeds.",
        "",
        f"`{command}`",
        "",
        "| recipe | learning rate | accuracy on the new classes, % |",
        "|---|---|---|",
        *(f"| {recipe} | {RECIPES[recipe][1]['lr']} | {mean_and_spread(found)} |" for recipe, found in table.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
