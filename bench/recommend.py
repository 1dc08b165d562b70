"""Recommendations of recipes, tested by leaving out data sets: how well the order of recipes is predicted for new data.

python -m bench.recommend [--methods kd,dkd,…] [--epochs 30,100] [--write docs/choosing.md]

Tables and parts of scikit-learn's data are uploaded to `stillhouse up`; each gets a teacher, and a job for every method
and number of epochs. Then the service's own regression is fitted without one data set after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select

from app.core.database import Database
from app.core.settings import Settings
from app.projects.tables import Project
from app.recommendations import repository
from app.recommendations.past import first_teacher, learnable, reference_of
from app.recommendations.regression import LeftOut, PastJob, leave_out, rank_correlation
from app.recommendations.service import as_past
from bench.quality import read_methods
from bench.report import replace_part
from bench.servers import PATIENCE_SECONDS, Embedded, started
from stillhouse import Client

Document = dict[str, Any]
Rows = np.ndarray[Any, Any]
METHODS = "kd,kd-standardized,logit-mse,nkd,dkd,dist,bd-kd,reverse-kl,jsd,akl"
"""Those of `examples/methods.yaml` that need no module of the networks, and only losses."""
TASK = "image-classification"
TEACHER = {"architecture": "mlp", "hidden": [128, 128]}
STUDENT = {"architecture": "mlp", "hidden": [12]}
OPTIMIZER = {"kind": "adamw", "lr": 5e-3, "weight_decay": 0.01}
COLUMNS = {"format": "parquet", "input_columns": ["x"], "label_columns": ["y"]}
TEACHER_EPOCHS = 60
PART = "recommend"


class Samples(NamedTuple):
    """A data set: rows (N, D) float32 and classes (N,) int64; students learn from the first `few` of the training
    rows."""

    x: Rows
    y: Rows
    few: int


class Line(NamedTuple):
    """One data set, left out of the fit."""

    name: str
    jobs: int
    correlation: float | None
    """Rank correlation between expected and measured ratios."""
    error: float
    """Mean absolute error of the ratio."""
    first: float
    """Measured ratio of the recipe that is expected to be best."""
    mean: float
    """Mean measured ratio: that of a recipe drawn at random."""
    best: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all jobs, fit, print, and write the page with `--write`."""
    options = _parser().parse_args(arguments)
    begun = time.monotonic()
    epochs = [int(each) for each in options.epochs.split(",")]
    with started(Embedded) as service, service.client() as client, tempfile.TemporaryDirectory() as folder:
        sets = dict(list(data_sets().items())[: options.sets])
        files = {name: upload(client, Path(folder), name, samples) for name, samples in sets.items()}
        run_jobs(client, files, options.methods.split(","), epochs)
        lines = test(service.settings, files)
    command = "python -m bench.recommend " + " ".join(arguments if arguments is not None else sys.argv[1:])
    text = section(lines, time.monotonic() - begun, command.rstrip())
    print(text)
    if options.write:
        replace_part(options.write, PART, text)


def data_sets() -> dict[str, Samples]:
    """Six data sets, in part made of others."""
    from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

    x, y = load_digits(return_X_y=True)
    low = y < 5
    found = {
        "iris": (*load_iris(return_X_y=True), 30),
        "wine": (*load_wine(return_X_y=True), 30),
        "breast cancer": (*load_breast_cancer(return_X_y=True), 40),
        "digits 8 x 8": (x, y, 150),
        "digits 0 to 4": (x[low], y[low], 60),
        "digits, odd or even": (x, y % 2, 100),
    }
    return {name: _shuffled(*each) for name, each in found.items()}


def _shuffled(x: Rows, y: Rows, few: int) -> Samples:
    order = np.random.default_rng(0).permutation(len(y))
    return Samples(x[order].astype(np.float32), y[order].astype(np.int64), few)


def upload(client: Client, folder: Path, name: str, samples: Samples) -> dict[str, str]:
    """Ids of the files `many`, `few` and `test`; the last 40% of the rows are the test."""
    last = len(samples.y) * 6 // 10
    parts = {"many": slice(last), "few": slice(min(samples.few, last)), "test": slice(last, None)}
    ids = {}
    for part, rows in parts.items():
        path = folder / f"{name}-{part}.parquet"
        inputs = pa.array(samples.x[rows].tolist(), pa.list_(pa.float32()))
        pq.write_table(pa.table({"x": inputs, "y": samples.y[rows]}), path)
        ids[part] = client.upload(path).id
    return ids


def run_jobs(client: Client, files: dict[str, dict[str, str]], methods: Sequence[str], epochs: Sequence[int]) -> None:
    """A teacher for each data set, and a student for every method and number of epochs. Raises RuntimeError."""
    recipes = {name: read_methods()[name] for name in methods}
    teachers = {
        name: client.submit(
            job(
                ids["many"], ids, TEACHER, {"losses": [{"kind": "cross-entropy"}]}, TEACHER_EPOCHS, f"teacher of {name}"
            )
        ).id
        for name, ids in files.items()
    }
    waiting = []
    for name, ids in files.items():
        teacher = {"teacher": {"model": _model(client, teachers[name])}}
        for method, recipe in recipes.items():
            for count in epochs:
                document = job(ids["few"], ids, STUDENT, recipe, count, f"{name}: {method}")
                waiting.append(client.submit(document | teacher).id)
    for job_id in waiting:
        _model(client, job_id)


def job(train: str, ids: dict[str, str], student: Document, recipe: Document, epochs: int, name: str) -> Document:
    """A job on one of the data sets."""
    return {
        "name": name,
        "task": TASK,
        "data": {"train": train, "eval": ids["test"], **COLUMNS},
        "student": student,
        "recipe": {**recipe, "optimizer": OPTIMIZER, "epochs": epochs, "batch_size": 16},
        "evaluation": {"every_epochs": 10_000},
        "export": ["safetensors"],
        "seed": 1,
    }


def _model(client: Client, job_id: str) -> str:
    done = client.wait(job_id, timeout_seconds=PATIENCE_SECONDS)
    if done.status != "succeeded" or done.model_id is None:
        raise RuntimeError(f"{done.name} is {done.status}: {done.error}")
    return done.model_id


def test(settings: Settings, files: dict[str, dict[str, str]]) -> list[Line]:
    """A line for each data set, predicted by a model that was fitted without it."""
    past, named = asyncio.run(read_past(settings))
    names = {key: name for key, train in named.items() for name, ids in files.items() if train == ids["few"]}
    return [line_of(names[test.data_set], test) for test in leave_out(past)]


async def read_past(settings: Settings) -> tuple[list[PastJob], dict[str, str]]:
    """The past jobs of the only project as the service reads them, and the training file of each data set."""
    database = Database.from_settings(settings)
    try:
        async with database.read() as session:
            project = (await session.scalars(select(Project.id))).one()
            rows = await repository.past_jobs(session, project)
            teachers = {reference_of(teacher) for row in rows if (teacher := first_teacher(row.spec))}
            known = await repository.teachers(session, project, teachers)
            past = learnable(rows, known, await repository.digests(session, project, _trains(rows)))
    finally:
        await database.close()
    trains = {row.job_id: row.spec["data"]["train"] for row in rows}
    files = {found.data_set: trains[found.job_id] for found in past}
    return [PastJob(**as_past(found, TASK)) for found in past], files


def _trains(rows: Sequence[repository.PastRow]) -> set[str]:
    return {row.spec["data"]["train"] for row in rows}


def line_of(name: str, test: LeftOut) -> Line:
    """The figures of one data set."""
    first = max(zip(test.predicted, test.measured, strict=True), key=lambda pair: pair[0])[1]
    correlation = rank_correlation(test.predicted, test.measured)
    mean, best = statistics.fmean(test.measured), max(test.measured)
    return Line(name, len(test.measured), correlation, statistics.fmean(test.errors), first, mean, best)


def section(lines: Sequence[Line], seconds: float, command: str) -> str:
    """The table as text."""
    found = [line.correlation for line in lines if line.correlation is not None]
    correlation = statistics.fmean(found) if found else float("nan")
    rows = [
        f"| {line.name} | {line.jobs} | {_shown(line.correlation, 2)} | {line.error:.3f} | {line.first:.3f} | "
        f"{line.mean:.3f} | {line.best:.3f} |"
        for line in lines
    ]
    means = [statistics.fmean(column) for column in zip(*(line[3:] for line in lines), strict=True)]
    return "\n".join(
        [
            f"{sum(line.jobs for line in lines)} jobs on {len(lines)} data sets, one seed each, in {seconds / 60:.0f} "
            f"minutes; mean rank correlation over data sets {correlation:.2f}, mean absolute error {means[0]:.3f}.",
            "",
            f"`{command}`",
            "",
            "| left-out data set | jobs | rank correlation | error of the ratio | ratio of the first recommendation | "
            "mean ratio of all | best ratio |",
            "|---|---|---|---|---|---|---|",
            *rows,
            f"| mean | | {correlation:.2f} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |",
        ]
    )


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.recommend", description="Tests recommendations on data sets that are left out."
    )
    parser.add_argument("--methods", default=METHODS, help="names from examples/methods.yaml, separated by commas")
    parser.add_argument("--epochs", default="30,100", help="numbers of epochs of the students, separated by commas")
    parser.add_argument("--sets", type=int, default=6, help="number of data sets")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page whose part is replaced")
    return parser


if __name__ == "__main__":
    main()
