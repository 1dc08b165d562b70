"""The trainer without the service: runs a job file in a folder, and prints its progress."""

from __future__ import annotations

import json
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

from pydantic import ValidationError

from app.recipe import defaults
from app.recipe.documents import DocumentError, parse
from app.recipe.job import MAX_SEED, JobSpec
from app.recipe.students.model import ModelConfig
from worker.errors import JobError
from worker.machine import make_deterministic
from worker.protocol import (
    Assignment,
    CachePlace,
    CheckpointSaved,
    Failed,
    InputSource,
    Log,
    Message,
    Metrics,
    PhaseBegan,
    StepProgress,
    Stopped,
)
from worker.teachers import read_teacher_config
from worker.trainer.perform import perform
from worker.trainer.service import ASSIGNMENT
from worker.training import checkpoint
from worker.training.monitor import CHECKPOINTS

SECONDS_BETWEEN_LINES = 1.0
EXIT_FAILED, EXIT_INVALID, EXIT_STOPPED = 1, 2, 130


class InvalidJob(Exception):
    """The job file can't be run; the text is the reason."""


def train_file(job_file: Path, out: Path, cache: Path | None = None) -> int:
    """Run the job of `job_file` in `out`, from the newest valid checkpoint there; returns the exit code.

    Teacher outputs are cached in `cache`, shared with other runs.
    """
    try:
        assignment = prepare(job_file, out, cache)
    except InvalidJob as error:
        _print(f"{job_file}: {error}")
        return EXIT_INVALID
    make_deterministic()
    result = perform(assignment, out, Screen().show, _stop_on_interrupt())
    if isinstance(result, Failed):
        _print(f"failed ({result.fault}, {result.code}): {result.message}")
        return EXIT_FAILED
    if isinstance(result, Stopped):
        _print(f"stopped at step {result.step}; run again to continue")
        return EXIT_STOPPED
    _print(f"finished: {out / 'bundle'}")
    return 0


def prepare(job_file: Path, out: Path, cache: Path | None = None) -> Assignment:
    """Write `out/assignment.json` for a job file whose references are paths relative to it; raises InvalidJob.

    A drawn seed, and the date of chat templates, are kept if the same folder is used again.
    """
    job = _read_job(job_file)
    out.mkdir(parents=True, exist_ok=True)
    job = _settled(job, out)
    if outside := [origin.reference for origin in job.origins.values() if origin.model is None]:
        raise InvalidJob(f"{outside[0]} is only fetched by a worker of the service; name a folder as model instead")
    inputs = {name: str((job_file.parent / name).resolve()) for name in job.references.values()}
    missing = [name for name, path in inputs.items() if not Path(path).exists()]
    if missing:
        raise InvalidJob(f"there is no {missing[0]} beside the job file")
    job, _ = defaults.resolve(job, _described(job, inputs))
    newest = _newest_sound(out / CHECKPOINTS)
    resume = str(newest.relative_to(out)) if newest else None
    place = CachePlace(folder=str(cache.resolve())) if cache else None
    sources = {name: InputSource(name=Path(name).name) for name in inputs}
    assignment = Assignment(spec=job, inputs=inputs, sources=sources, resume=resume, teacher_cache=place)
    (out / ASSIGNMENT).write_text(assignment.model_dump_json(indent=2), encoding="utf-8")
    return assignment


def _described(job: JobSpec, inputs: Mapping[str, str]) -> dict[str, ModelConfig]:
    """Descriptions of the models that the job names; the trainer rejects those that can't be read."""
    found = {}
    for origin in job.origins.values():
        with suppress(JobError):
            found[origin.reference] = read_teacher_config(Path(inputs[origin.reference]), origin.source)
    return found


class Screen:
    """Prints the trainer's messages on stderr, one short line each."""

    def __init__(self) -> None:
        self._next = float("-inf")
        self._loss = float("nan")

    def show(self, message: Message) -> None:
        """Print `message` if it is due."""
        if isinstance(message, Metrics):
            self._loss = message.values.get("train/loss", self._loss)
        if isinstance(message, StepProgress):
            if time.monotonic() < self._next and message.step < message.total_steps:
                return
            self._next = time.monotonic() + SECONDS_BETWEEN_LINES
        if line := self._line(message):
            _print(line)

    def _line(self, message: Message) -> str | None:
        match message:
            case StepProgress():
                rate = f"{message.samples_per_second:.0f} samples/s"
                left = f"{message.seconds_left or 0:.0f} s left"
                return f"step {message.step}/{message.total_steps}  loss {self._loss:.4f}  {rate}  {left}"
            case Metrics():
                shown = [f"{name} {value:.4f}" for name, value in message.values.items() if name.startswith("eval/")]
                return f"step {message.step}  " + "  ".join(shown) if shown else None
            case PhaseBegan():
                return message.phase
            case CheckpointSaved():
                return f"saved {message.path}"
            case Log():
                return f"{message.level}: {message.message}"
        return None


def _print(line: str) -> None:
    sys.stderr.write(line + "\n")


def _read_job(job_file: Path) -> JobSpec:
    try:
        return JobSpec.model_validate_json(json.dumps(parse(job_file.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, DocumentError) as error:
        raise InvalidJob(str(error)) from error
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise InvalidJob("; ".join(lines)) from error


def _settled(job: JobSpec, out: Path) -> JobSpec:
    """The job with the seed and the date that were drawn when the folder was first used."""
    seed, day = secrets.randbelow(MAX_SEED) + 1, datetime.now(UTC).date()
    drawn_seed, drawn_day = _drawn(out)
    return job.settled(job.seed if job.seed is not None else drawn_seed or seed, drawn_day or day)


def _drawn(out: Path) -> tuple[int | None, date | None]:
    """Seed and date of the assignment in `out`, of any version; none if there are none."""
    try:
        spec = json.loads((out / ASSIGNMENT).read_bytes())["spec"]
        seed, day = spec["seed"], spec["data"].get("chat_date")
        return int(seed) or None, date.fromisoformat(day) if day else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None, None


def _newest_sound(root: Path) -> Path | None:
    for folder in checkpoint.saved(root):
        try:
            checkpoint.read_record(folder)
        except checkpoint.CheckpointError as error:
            _print(f"warning: {error}; trying an earlier one")
        else:
            return folder
    return None


def _stop_on_interrupt() -> Callable[[], bool]:
    """Make the first interrupt request a checkpoint; the second one kills."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, ask)
    return asked.is_set
