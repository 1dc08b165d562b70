"""Quality of students by method: all methods under the same conditions, over several seeds, as a page of tables.

python -m bench.quality [--set digits] [--set FILE.npz] [--write docs/quality.md]

A set is `digits`, or a NumPy archive with `x_train`, `y_train`, `x_test` and `y_test` of ten classes. One teacher is
trained for each; then every method of `examples/methods.yaml` trains the same student from the same first weights of
its seed on the same batches. Nothing but the losses differs, and none of the settings was tuned to the sets.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from bench.report import replace_part
from bench.students import Document, learns_from_a_teacher, train, training_pool

METHODS = Path(__file__).parents[1] / "examples" / "methods.yaml"
ALONE = "alone"
TEACHER = {"architecture": "wide-resnet", "depth": 16, "widen": 2}
STUDENT = {"architecture": "wide-resnet", "depth": 10, "widen": 1}
DIGITS = "digits"
CLASSES = 10
Images = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Size:
    """Sizes of the training."""

    train: int
    """Training images of students; the teacher has all."""
    shrink: int
    """Pixels that are averaged to one along each side."""
    teacher_epochs: int
    epochs: int
    seeds: int


class Result(NamedTuple):
    """Metrics of one student on the test images."""

    accuracy: float
    ece: float
    agreement: float
    step_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    parser = set_parser("python -m bench.quality", "Compares the methods under equal conditions.")
    parser.add_argument("--methods", help="names separated by commas; default: all")
    options = parser.parse_args(arguments)
    size = size_of(options)
    wanted = options.methods.split(",") if options.methods else None
    command = "python -m bench.quality " + " ".join(arguments if arguments is not None else sys.argv[1:])
    for name in options.set or [DIGITS]:
        begun = time.monotonic()
        table = compare(name, size, wanted)
        text = _section(name, size, table, time.monotonic() - begun, command)
        print(text)
        if options.write:
            replace_part(options.write, Path(name).stem, text)


def compare(name: str, size: Size, wanted: Iterable[str] | None = None) -> dict[str, list[Result]]:
    """Results of every method by seed, and one of `teacher`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_set(name, folder, size)
        with training_pool() as pool:
            alone = job_of({"losses": [{"kind": "cross-entropy"}]}, size, None)
            teacher = pool.submit(_train, folder, "teacher", alone)
            table = {"teacher": [teacher.result()]}
            methods = read_methods()
            names = list(wanted or methods)
            jobs = [(name, seed) for seed in range(size.seeds) for name in names]
            waiting = [
                pool.submit(_train, folder, f"{name}-{seed}", job_of(methods[name], size, seed)) for name, seed in jobs
            ]
            for (name, _), result in zip(jobs, waiting, strict=True):
                table.setdefault(name, []).append(result.result())
    return table


def read_methods() -> dict[str, Document]:
    """Recipes by the names of their methods."""
    return dict(yaml.safe_load(METHODS.read_text(encoding="utf-8")))


def read_set(name: str, size: Size) -> dict[str, Images]:
    """Arrays `x_train`, `y_train`, `x_test` and `y_test`; images are shrunk, persons that are given are the classes."""
    arrays = _digits() if name == DIGITS else dict(np.load(name, allow_pickle=False))
    persons = {f"y_{part}": arrays[f"person_{part}"] for part in ("train", "test") if f"person_{part}" in arrays}
    return arrays | persons | {part: _shrunk(arrays[part], size.shrink) for part in ("x_train", "x_test")}


def write_set(name: str, folder: Path, size: Size) -> None:
    """Write archives `all`, `train` and `test` with `x` and `y`; the training images are the first of all."""
    arrays = read_set(name, size)
    x, y = arrays["x_train"], arrays["y_train"].astype(np.int64)
    np.savez(folder / "all", x=x, y=y)
    np.savez(folder / "train", x=x[: size.train], y=y[: size.train])
    np.savez(folder / "test", x=arrays["x_test"], y=arrays["y_test"].astype(np.int64))


def _shrunk(images: Images, by: int) -> Images:
    count, height, width, *channels = images.shape
    blocks = images.reshape(count, height // by, by, width // by, by, *channels)
    return images if by == 1 else np.round(blocks.mean((2, 4))).astype(np.uint8)


def _digits() -> dict[str, Images]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(1).permutation(len(digits.target))
    images, labels = np.round(digits.images[order] * (255 / 16)).astype(np.uint8), digits.target[order]
    return {"x_train": images[500:], "y_train": labels[500:], "x_test": images[:500], "y_test": labels[:500]}


def job_of(method: Document, size: Size, seed: int | None, teachers: Sequence[str] = ("teacher",)) -> Document:
    """A student's job, or a teacher's if `seed` is none; a student that learns from a teacher has all `teachers`."""
    recipe = {
        **method,
        "epochs": size.teacher_epochs if seed is None else size.epochs,
        "batch_size": 64,
        "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        "schedule": {"kind": "cosine"},
        "clip_norm": 5.0,
    }
    document: Document = {
        "data": {"train": "all" if seed is None else "train", "eval": "test", "classes": CLASSES},
        "student": TEACHER if seed is None else STUDENT,
        "recipe": recipe,
        "evaluation": {"every_epochs": 10_000},
        "export": ["safetensors"],
        "seed": 0 if seed is None else seed + 1,
    }
    if learns_from_a_teacher(document):
        document["teachers"] = [{"model": teacher, "name": teacher} for teacher in teachers]
    return document


def _train(folder: Path, name: str, document: Document) -> Result:
    inputs = {part: folder / f"{part}.npz" for part in ("all", "train", "test")}
    inputs["teacher"] = folder / "teacher" / "bundle"
    report, step_ms = train(name, document, inputs, folder / name, folder / "answers")
    student = report["student"]
    return Result(student["accuracy"], student["ece"], student.get("agreement", float("nan")), step_ms)


def _section(name: str, size: Size, table: dict[str, list[Result]], seconds: float, command: str) -> str:
    smaller = f", shrunk {size.shrink} times" if size.shrink > 1 else ""
    what = "scikit-learn's digits (8 x 8)" if name == DIGITS else f"`{Path(name).name}`{smaller}"
    shown = {method: results for method, results in table.items() if method != "teacher"}
    teacher = table["teacher"][0]
    alone = _mean(table[ALONE]).accuracy if ALONE in table else float("nan")
    lines = [
        f"On {what}: the teacher, a `wide-resnet` 16-2, was trained on all images for {size.teacher_epochs} epochs; "
        f"its test accuracy is {teacher.accuracy:.1%} (ECE {teacher.ece:.3f}). Students are `wide-resnet` 10-1 on the "
        f"first {size.train} images, {size.epochs} epochs; mean and standard deviation over {size.seeds} seeds. "
        f"The whole run took {seconds / 60:.0f} minutes, two jobs at a time on a thread each; the time per step is CPU "
        f"time, including all stages and the computation of the cached teacher outputs.",
        "",
        f"`{command}`",
        "",
        "| method | accuracy, % | gain over alone | ECE | agreement, % | CPU ms per step |",
        "|---|---|---|---|---|---|",
        *(_line(method, results, alone) for method, results in shown.items()),
    ]
    return "\n".join(lines)


def _line(method: str, results: list[Result], alone: float) -> str:
    mean = _mean(results)
    spread = statistics.stdev(100 * result.accuracy for result in results) if len(results) > 1 else float("nan")
    agreement = f"{100 * mean.agreement:.1f}" if mean.agreement == mean.agreement else ""
    gain = 100 * (mean.accuracy - alone)
    accuracy = f"{100 * mean.accuracy:.1f} ± {spread:.1f}"
    return f"| {method} | {accuracy} | {gain:+.1f} | {mean.ece:.3f} | {agreement} | {mean.step_ms:.1f} |"


def _mean(results: list[Result]) -> Result:
    return Result(*(statistics.fmean(column) for column in zip(*results, strict=True)))


def set_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser of the options on sets, sizes and the page."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--set", action="append", metavar="SET", help="digits, or a .npz file; may be given again")
    parser.add_argument("--train", type=int, default=300, help="images that students are trained on")
    parser.add_argument("--shrink", type=int, default=1, help="factor by which each side is reduced")
    parser.add_argument("--teacher-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose part is replaced")
    return parser


def size_of(options: argparse.Namespace) -> Size:
    """The sizes in the options of `set_parser`."""
    return Size(options.train, options.shrink, options.teacher_epochs, options.epochs, options.seeds)


if __name__ == "__main__":
    main()
