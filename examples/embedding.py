"""Sentence encoders: a teacher, a student that learns from it, and the same student without it.

python examples/embedding.py --train train.tsv.gz --eval dev.tsv.gz [--teacher FOLDER]

The files have a header line and columns set apart by tabs (plain, or packed by gzip), among them `sentence1`,
`sentence2` and `score` from 0 to 5, as in the STS Benchmark. The teacher is a folder of sentence-transformers; without
one, a small BERT learns from scratch first. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from session import alone, console, fetch, finish, options_of, play, read_job, report_of, say, submit
from sst2 import write_rows

from app.recipe.students.hugging_face import is_model_file
from stillhouse import Client
from stillhouse.cli import views

TRAIN, EVAL = "sts.tsv.gz", "sts-dev.tsv.gz"


def main() -> int:
    parser = options_of("Distils a small sentence encoder.", "embedding-output")
    parser.add_argument("--train", type=Path, required=True, help="pairs of sentences to learn from")
    parser.add_argument("--eval", type=Path, required=True, help="pairs to be measured on")
    parser.add_argument("--teacher", type=Path, help="folder of sentence-transformers; else a BERT learns first")
    parser.add_argument("--rows", type=int, help="pairs to learn from, the first ones; all when not given")
    parser.add_argument("--epochs", type=int, help="of every job; its own when not given")
    return play(parser.parse_args(), run)


def run(client: Client, options: argparse.Namespace) -> None:
    """Data, teacher, students, table."""
    data = options.output / "data"
    count = write_rows(options.train, data / TRAIN, options.rows)
    say(f"{count:,} pairs to learn from, {write_rows(options.eval, data / EVAL):,} to be measured on.")
    epochs = (f"recipe.epochs={options.epochs}",) if options.epochs else ()
    teacher = register(client, options.teacher) if options.teacher else train(client, data, epochs)

    distilled = read_job("embedding.yaml", f"teacher.model={teacher}", *epochs)
    jobs = finish(client, [submit(client, job, data) for job in (distilled, alone(distilled, "pair-score"))])
    for job in jobs:
        fetch(client, job, options.output / "models")
    taught, untaught = (report_of(client, job) for job in jobs)
    rows = {"teacher": taught["teacher"], "distilled": taught["student"], "the same, alone": untaught["student"]}
    show(rows, taught["samples"]["eval"])


def register(client: Client, folder: Path) -> str:
    """Upload a folder of sentence-transformers; the id of the model that it becomes."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {name: client.upload(path).id for name, path in paths.items() if is_model_file(name)}
    return client.register_folder(files, name=folder.name).id


def train(client: Client, data: Path, changes: tuple[str, ...]) -> str:
    """Train the teacher; its id."""
    say("The teacher learns from the scores:")
    [job] = finish(client, [submit(client, read_job("embedding-teacher.yaml", *changes), data)])
    return str(job.model_id)


def show(rows: Mapping[str, Mapping[str, Any]], samples: int) -> None:
    """Print a table of encoders, by what to call them, from the figures of reports."""
    columns = ("", "parameters", "weights", "Spearman", "Pearson", "like teacher", "p50 ms")
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, figures in rows.items():
        likeness = (figures.get(key) for key in ("spearman", "pearson", "teacher_correlation"))
        shown = ("" if value is None else f"{value:.3f}" for value in likeness)
        size, milliseconds = views.size(figures["bytes"]), f"{figures['latency_ms_p50']:.2f}"
        table.add_row(name, f"{figures['parameters']:,}", size, *shown, milliseconds)
    console.print(table)
    say(
        f"Measured by the worker on {samples:,} pairs that no model was trained on.\n"
        "Spearman, Pearson: of cosines with scores. Like teacher: correlation of both encoders' cosines of sentences."
    )


if __name__ == "__main__":
    sys.exit(main())
