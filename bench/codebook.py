"""Perplexity of language models with a codebook as last layer, by its size.

python -m bench.codebook --text input.txt [--seeds 3] [--work FOLDER] [--write docs/quality.md]

Teacher, student and text are those of `bench.language`; the student of each row is the same but for its last layer.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from app.recipe import documents
from bench.language import EXAMPLES, compare, text_parser
from bench.report import replace_part
from bench.students import Document

SIZES = (64, 128, 256, 512)
FULL = "full"


class CodebookResult(NamedTuple):
    """Figures of one student on the held-out text; the last two are NaN without a codebook."""

    perplexity: float
    kl: float
    least_kl: float
    kilobytes: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write the page with `--write`."""
    options = text_parser("python -m bench.codebook", "Compares sizes of codebooks.").parse_args(arguments)
    text = options.text.read_text(encoding="utf-8")[: options.characters]
    command = " ".join(["python -m bench.codebook", *(arguments if arguments is not None else sys.argv[1:])])
    with TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        teacher = compare(text, students(), options.seeds, folder, options.epochs)["teacher"][0].perplexity
        rows = {name: [read_result(folder, name, seed) for seed in range(options.seeds)] for name in students()}
    made = (
        f"On {len(text):,} characters, the last tenth held out: the teacher's perplexity is {teacher:.2f}. "
        f"Mean and standard deviation over {options.seeds} seed(s)."
    )
    page = "\n".join([made, "", f"`{command}`", "", *table(rows)])
    print(page)
    if options.write:
        replace_part(options.write, "codebook", page)


def students() -> dict[str, Document]:
    """Changes to the student's job by row."""
    job = documents.parse((EXAMPLES / "shakespeare-codebook.yaml").read_text(encoding="utf-8"))
    losses = {"losses": job["recipe"]["losses"]}
    plain = {key: value for key, value in job["student"].items() if key != "head"}
    found: dict[str, Document] = {FULL: {"student": plain, "recipe": losses}}
    for size in SIZES:
        found[str(size)] = {"student": {**plain, "head": {"kind": "vq-logits", "codes": size}}, "recipe": losses}
    return found


def read_result(folder: Path, name: str, seed: int) -> CodebookResult:
    """Figures of a finished job."""
    report = json.loads((folder / f"{name}-{seed}" / "bundle" / "report.json").read_bytes())
    student, codebook = report["student"], report.get("codebook", {})
    kilobytes = codebook.get("bytes", float("nan")) / 1000
    return CodebookResult(student["perplexity"], student["kl"], codebook.get("least_kl", float("nan")), kilobytes)


def table(rows: dict[str, list[CodebookResult]]) -> list[str]:
    """Lines of the table."""
    header = ["rows of the last layer", "perplexity", "KL from the teacher", "bound of the KL", "layer, kB"]
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(_line(name, rows[name]) for name in rows)]


def _line(name: str, results: Sequence[CodebookResult]) -> str:
    mean = CodebookResult(*(statistics.fmean(column) for column in zip(*results, strict=True)))
    spread = f" ± {statistics.stdev(each.perplexity for each in results):.2f}" if len(results) > 1 else ""
    known = mean.least_kl == mean.least_kl
    bound, size = (f"{mean.least_kl:.3f}", f"{mean.kilobytes:.0f}") if known else ("", "")
    return f"| {name} | {mean.perplexity:.2f}{spread} | {mean.kl:.3f} | {bound} | {size} |"


if __name__ == "__main__":
    main()
