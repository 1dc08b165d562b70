"""A whole distillation over HTTP, from data to a measured model. Run by `make demo`.

Starts Stillhouse on a free loopback port, uploads real images, trains a teacher, distils small students and trains the
same students alone, downloads them all and measures them in a process of their own that knows nothing of Stillhouse.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from digits import DataFiles, write_digits
from rich.box import SIMPLE_HEAD
from rich.table import Table
from session import ExampleError, console, fetch, finish, options_of, play, say

from stillhouse import Client, File, Job
from stillhouse.cli import views

READER = Path(__file__).with_name("onnx_reader.py")
STUDENT = {"architecture": "mlp", "hidden": [16]}
TEACHER = {"architecture": "mlp", "hidden": [512, 256]}


class Figures(NamedTuple):
    """What was measured of one model."""

    parameters: int
    bytes: int
    accuracy: float
    ece: float
    agreement: float
    latency_ms: float


def main() -> int:
    parser = options_of("Distils a model over HTTP and measures the result.", "demo-output")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each student")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of each student")
    parser.add_argument("--teacher-epochs", type=int, default=30)
    return play(parser.parse_args(), run)


def run(client: Client, options: argparse.Namespace) -> None:
    """Teacher, students, download, measurement, table."""
    paths = write_digits(options.output / "data")
    many, few, test = (client.upload(path) for path in paths)
    say("Uploaded 1,297 labelled images for the teacher, 200 of them for the students, and 500 others to test on.")

    say("\nThe teacher learns from all labels:")
    [teacher] = finish(client, [client.submit(teacher_job(many, test, options.teacher_epochs))])
    assert teacher.model_id is not None
    say("\nThe students learn from 200 labels, distilled and alone:")
    seeds = range(options.seeds)
    distilled = [student_job(few, test, options.epochs, seed, teacher.model_id) for seed in seeds]
    alone = [student_job(few, test, options.epochs, seed) for seed in seeds]
    students = finish(client, [client.submit(spec) for spec in distilled + alone])

    say("\nDownloading, and measuring with ONNX Runtime in a process of its own:")
    folder = options.output / "models"
    reference = fetch(client, teacher, folder)
    figures = [measure(client, job, fetch(client, job, folder), paths, reference) for job in (teacher, *students)]
    report(figures[:1], figures[1 : 1 + options.seeds], figures[1 + options.seeds :])
    (options.output / "figures.json").write_text(json.dumps([figure._asdict() for figure in figures], indent=2))


def teacher_job(many: File, test: File, epochs: int) -> dict[str, Any]:
    return {
        "name": "teacher",
        "data": {"train": many.id, "eval": test.id},
        "student": TEACHER,
        "recipe": {
            "losses": [{"kind": "cross-entropy"}],
            "optimizer": {"kind": "adamw", "lr": 1e-3, "weight_decay": 0.01},
            "schedule": {"kind": "cosine"},
            "epochs": epochs,
            "batch_size": 64,
        },
        "evaluation": {"every_epochs": 10},
        "seed": 0,
    }


def student_job(few: File, test: File, epochs: int, seed: int, teacher: str | None = None) -> dict[str, Any]:
    """The same student with the same recipe; only the teacher, and the loss that learns from it, differ."""
    nkd = [{"kind": "nkd", "gamma": 1.5, "temperature": 2.0}] if teacher else []
    return {
        "name": f"{'distilled' if teacher else 'alone'}-{seed}",
        "data": {"train": few.id, "eval": test.id, "classes": 10},
        "teacher": {"model": teacher} if teacher else None,
        "student": STUDENT,
        "recipe": {
            "losses": [{"kind": "cross-entropy"}, *nkd],
            "optimizer": {"kind": "adamp", "lr": 1e-2},
            "schedule": {"kind": "cosine"},
            "epochs": epochs,
            "batch_size": 32,
        },
        "evaluation": {"every_epochs": 25},
        "seed": seed,
    }


def measure(client: Client, job: Job, bundle: Path, data: DataFiles, teacher: Path) -> Figures:
    """Figures of a bundle from a fresh, isolated interpreter."""
    command = [sys.executable, "-I", READER, bundle, data.test, teacher]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ExampleError(f"ONNX Runtime could not read {bundle}: {result.stderr.strip()}")
    say(f"  {bundle}: sha256 verified, measured")
    model = client.model(str(job.model_id))
    return Figures(model.parameters, (bundle / "model.safetensors").stat().st_size, **json.loads(result.stdout))


def report(teacher: Sequence[Figures], distilled: Sequence[Figures], alone: Sequence[Figures]) -> None:
    """Print the table of this run, and what it says."""
    columns = ("", "parameters", "weights", "accuracy %", "ECE %", "agreement %", "p50 ms")
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, runs in (("teacher", teacher), ("distilled", distilled), ("alone", alone)):
        table.add_row(
            name,
            f"{runs[0].parameters:,}",
            views.size(runs[0].bytes),
            spread([run.accuracy for run in runs]),
            spread([run.ece for run in runs]),
            spread([run.agreement for run in runs]),
            f"{statistics.median(run.latency_ms for run in runs):.3f}",
        )
    console.print(table)
    say(
        f"Mean ± standard deviation over {len(distilled)} seeds, on 500 images that no model was trained on.\n"
        "ECE: expected calibration error. Agreement: with the teacher. p50: median time of one image on one CPU core."
    )
    say(verdict([run.accuracy for run in distilled], [run.accuracy for run in alone]))


def spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in per cent."""
    deviation = f" ± {statistics.stdev(shares) * 100:.1f}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares) * 100:.1f}{deviation}"


def verdict(distilled: Sequence[float], alone: Sequence[float]) -> str:
    """What the accuracies say, and no more."""
    gain = (statistics.mean(distilled) - statistics.mean(alone)) * 100
    if gain <= 0:
        return f"In this run distillation did not help: {-gain:.1f} points less than the same student alone."
    if min(distilled) > max(alone):
        return f"Distillation gained {gain:.1f} points; the worst distilled student beats the best one alone."
    return f"Distillation gained {gain:.1f} points on average, but single runs overlap."


if __name__ == "__main__":
    sys.exit(main())
