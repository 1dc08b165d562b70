"""Robustness of students by method: accuracy on images as they are and under attacks, over several seeds.

python -m bench.robustness [--set digits] [--set FILE.npz] [--write docs/quality.md]

Sets, networks and settings are those of `bench.quality`. Two teachers are trained on all images of a set: one as usual,
and one on attacked images.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.quality import DIGITS, Size, job_of, set_parser, size_of, write_set
from bench.report import mean_and_spread, replace_part
from bench.students import Document, train, training_pool

CLEAN, ROBUST = "clean", "robust"
LABELS: Document = {"losses": [{"kind": "cross-entropy"}]}
KD: Document = {"losses": [{"kind": "cross-entropy", "weight": 0.1}, {"kind": "kd", "weight": 0.9}]}
ATTACKED: Document = {**LABELS, "method": {"kind": "adversarial"}}
BOTH = {"kind": "adversarial", "clean_teacher": CLEAN, "robust_teacher": ROBUST, "label_weight": 0.0}
BOUNDS = {DIGITS: {"bound": 0.1, "step_size": 0.025}}
"""Attacks on sets whose images have few and large strokes; others have the contract's defaults."""
TEACHERS = {CLEAN: LABELS, ROBUST: ATTACKED}
STUDENTS: dict[str, tuple[Document, tuple[str, ...]]] = {
    "alone": (LABELS, ()),
    "kd, clean teacher": (KD, (CLEAN,)),
    "kd, robust teacher": (KD, (ROBUST,)),
    "adversarial": (ATTACKED, ()),
    "mtard": ({**LABELS, "method": BOTH}, (CLEAN, ROBUST)),
}
"""Recipes and teachers of the students."""


class Result(NamedTuple):
    """Accuracies of one model on the test images, as they are and under each attack on itself."""

    accuracy: float
    fgsm_accuracy: float
    pgd_accuracy: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    parser = set_parser("python -m bench.robustness", "Compares the robustness of students by method.")
    options = parser.parse_args(arguments)
    size = size_of(options)
    command = "python -m bench.robustness " + " ".join(arguments if arguments is not None else sys.argv[1:])
    for name in options.set or [DIGITS]:
        begun = time.monotonic()
        text = _section(name, size, compare(name, size), time.monotonic() - begun, command.strip())
        print(text)
        if options.write:
            replace_part(options.write, f"robustness-{Path(name).stem}", text)


def compare(set_name: str, size: Size) -> dict[str, list[Result]]:
    """Results of both teachers, and those of every student by seed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_set(set_name, folder, size)
        with training_pool() as pool:
            taught = {
                name: pool.submit(_train, folder, name, _job(set_name, recipe, (), size, None))
                for name, recipe in TEACHERS.items()
            }
            table = {f"{name} teacher": [future.result()] for name, future in taught.items()}
            waiting = {
                (name, seed): pool.submit(_train, folder, f"{number}-{seed}", _job(set_name, *student, size, seed))
                for seed in range(size.seeds)
                for number, (name, student) in enumerate(STUDENTS.items())
            }
            for (name, _), future in waiting.items():
                table.setdefault(name, []).append(future.result())
    return table


def _job(set_name: str, recipe: Document, teachers: Sequence[str], size: Size, seed: int | None) -> Document:
    bounds = BOUNDS.get(set_name, {})
    attacked = {**recipe, "method": {**recipe["method"], **bounds}} if "method" in recipe else recipe
    document = job_of(attacked, size, seed, teachers)
    document["evaluation"]["diagnostics"] = [{"kind": "robustness", "limit": None, **bounds}]
    return document


def _train(folder: Path, name: str, document: Document) -> Result:
    inputs = {part: folder / f"{part}.npz" for part in ("all", "train", "test")}
    inputs |= {teacher: folder / teacher / "bundle" for teacher in TEACHERS}
    report, _ = train(name, document, inputs, folder / name, folder / "cache")
    found = report["diagnostics"]["robustness"]["figures"]["student"]
    return Result(*(found[field] for field in Result._fields))


def _section(name: str, size: Size, table: dict[str, list[Result]], seconds: float, command: str) -> str:
    what = "scikit-learn's digits (8 x 8)" if name == DIGITS else f"`{Path(name).name}`, shrunk {size.shrink} times"
    lines = [
        f"On {what}, with the networks and settings of the tables above: teachers were trained on all images for "
        f"{size.teacher_epochs} epochs, students on the first {size.train} for {size.epochs}; mean and standard "
        f"deviation over {size.seeds} seeds, in % of all test images. The whole run took {seconds / 60:.0f} minutes.",
        "",
        f"`{command}`",
        "",
        "| model | as they are | FGSM | PGD-20 |",
        "|---|---|---|---|",
        *(
            f"| {model} | {' | '.join(map(mean_and_spread, zip(*results, strict=True)))} |"
            for model, results in table.items()
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
