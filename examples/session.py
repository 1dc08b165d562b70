"""What the example programs share: a service, jobs that run to their end, and a table of what came of them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from stillhouse import Client, ClientError, Job, documents
from stillhouse.cli import views
from stillhouse.cli.board import follow

HERE = Path(__file__).parent
START_SECONDS = 60
STOP_SECONDS = 30
PLAIN = "cross-entropy"
"""The loss that is left of a recipe when its teacher goes."""
console = Console(highlight=False)


class ExampleError(Exception):
    """The example cannot go on; the message says why."""


def say(text: str) -> None:
    """Print text as it is, folded only by the terminal."""
    console.print(text, markup=False, soft_wrap=True)


def options_of(description: str, output: str) -> argparse.ArgumentParser:
    """The options that every example has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=Path(output), help="folder for all that is made")
    own = "use the service that runs here, or STILLHOUSE_URL's; else one is started for the example"
    parser.add_argument("--running", action="store_true", help=own)
    return parser


def play(options: argparse.Namespace, run: Callable[[Client, Any], None]) -> int:
    """Have `run` use a service; the exit code. What was started is stopped whatever happens."""
    start = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Client() if options.running else service(options.output) as client:
            run(client, options)
    except KeyboardInterrupt:
        say("Interrupted; the service was stopped.")
        return 130
    except (ExampleError, ClientError, OSError) as error:
        say(f"The example failed: {error}")
        if not options.running:
            say(f"The service's log: {options.output / 'service.log'}")
        return 1
    say(f"Done in {time.monotonic() - start:.0f} s. The models and their reports lie in {options.output}")
    return 0


@contextmanager
def service(output: Path) -> Iterator[Client]:
    """Run `stillhouse up` on a free port, with its data under `output`; stopped whatever happens."""
    output.mkdir(parents=True, exist_ok=True)
    command = [Path(sys.executable).with_name("stillhouse"), "up", "--port", "0", "--json"]
    mine = {"STILLHOUSE_DATA_DIR": str((output / "service").resolve())}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STILLHOUSE_")}
    with (output / "service.log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=clean | mine, text=True, start_new_session=True
        )
        try:
            hello = _read_hello(server)
            say(f"Stillhouse runs at {hello['url']} (docs: {hello['docs']})")
            with Client(hello["url"], hello["key"]) as client:
                yield client
        finally:
            _stop(server)


def _read_hello(server: subprocess.Popen[str]) -> dict[str, str]:
    """The line of JSON that the service prints once it answers."""
    assert server.stdout is not None
    timer = signal.signal(signal.SIGALRM, lambda *_: server.kill())
    signal.alarm(START_SECONDS)
    line = server.stdout.readline()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, timer)
    if not line:
        raise ExampleError(f"the service did not start (exit code {server.wait()})")
    return json.loads(line)


def _stop(server: subprocess.Popen[str]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def read_job(name: str, *assignments: str) -> dict[str, Any]:
    """A job file of this folder, with `key.path=value` in it replaced."""
    return documents.read(HERE / name, assignments)


def alone(job: Mapping[str, Any], kind: str = PLAIN) -> dict[str, Any]:
    """The same job without a teacher, and with the loss of this kind alone at its full weight."""
    without = {key: value for key, value in job.items() if key != "teacher"}
    losses = [{**loss, "weight": 1.0} for loss in job["recipe"]["losses"] if loss["kind"] == kind]
    recipe = {**job["recipe"], "losses": losses}
    return {**without, "name": f"{job['name']}, alone", "recipe": recipe}


def submit(client: Client, job: dict[str, Any], data: Path) -> Job:
    """Send a job; its data files lie in `data`."""
    return client.submit(job, folder=data)


def finish(client: Client, jobs: Sequence[Job]) -> list[Job]:
    """Show the jobs to their end; all must succeed."""
    ended = follow(client, jobs, console, events=False)
    for job in ended:
        if job.status != "succeeded":
            raise ExampleError(f"{job.name}: {views.failure(job)}")
    return ended


def fetch(client: Client, job: Job, folder: Path) -> Path:
    """Download a job's bundle; the client verifies each file's sha256."""
    bundle = folder / str(job.name)
    for artifact in client.artifacts(job.id):
        client.download(job.id, artifact.name, bundle)
    return bundle


def report_of(client: Client, job: Job) -> dict[str, Any]:
    """What the worker measured of the exported files of a job."""
    found = client.model(str(job.model_id)).report
    assert found is not None  # a job that succeeded has one
    return found


def show(rows: Mapping[str, Mapping[str, Any]], samples: int) -> None:
    """Print a table of classifiers, by what to call them, from the figures of reports."""
    columns = ("", "parameters", "weights", "accuracy %", "ECE %", "agreement %", "p50 ms")
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, figures in rows.items():
        shares = (f"{figures[key] * 100:.2f}" if key in figures else "" for key in ("accuracy", "ece", "agreement"))
        size, milliseconds = views.size(figures["bytes"]), f"{figures['latency_ms_p50']:.2f}"
        table.add_row(name, f"{figures['parameters']:,}", size, *shares, milliseconds)
    console.print(table)
    say(
        f"Measured by the worker on {samples:,} samples that no model was trained on.\n"
        "ECE: expected calibration error. Agreement: with the teacher. p50: median time of one sample on the CPU."
    )
