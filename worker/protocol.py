"""Protocol of supervisor and trainer: one JSON object per line, over the trainer's stdin and stdout.

The supervisor stages a folder and sends `Start`. The trainer sends the messages below, writes only inside the
folder and the cache of its assignment, and ends with exactly one `Finished`, `Stopped` or `Failed`. Every path
in its messages is relative to the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from app.recipe.job import JobSpec
from app.recipe.teachers.cache import DEFAULT_BYTES

MAX_TEXT = 8192
"""Characters of a text in a message: a line may have a million bytes, and texts may quote the input of users."""


def _sendable(text: object) -> object:
    """The text, truncated if it is too long, and without unpaired surrogates, which UTF-8 does not have."""
    if not isinstance(text, str):
        return text
    sound = text.encode("utf-8", "backslashreplace").decode()
    left = len(sound) - MAX_TEXT + 40  # room for the note on the truncation
    return sound if len(sound) <= MAX_TEXT else f"{sound[:-left]} … and {left} more characters"


Text = Annotated[str, BeforeValidator(_sendable)]
TRAINER_KILLED = "trainer_killed"
"""Code of the failure of an attempt whose trainer, or one of its processes, was killed from outside."""
NODE_LOST = "node_lost"
"""Code of the failure of an attempt that lost another of its machines."""


class Message(BaseModel):
    """Base of all messages; unknown keys are ignored, so that an older supervisor understands a newer trainer."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class CachePlace(Message):
    """Place of the teacher cache on this machine, for all its jobs."""

    folder: str
    """Absolute path; created if it is missing, and not emptied after the job."""
    max_bytes: int = DEFAULT_BYTES
    """Most bytes in it; the least recently used outputs are evicted."""
    owner: str = ""
    """Only jobs of the same owner share outputs: a cache hit would reveal that another has this teacher and data."""


class InputSource(Message):
    """Facts of the service about an input."""

    name: str | None = None
    """Name given by its user."""
    sha256: str | None = None
    """Digest of a data file."""


class Assignment(Message):
    """Content of `assignment.json` in the staged folder: the complete input of the trainer."""

    spec: JobSpec
    """Resolved: the seed is set."""
    inputs: dict[str, str]
    """Staged path of every reference in the spec: a file, or the folder of a model's bundle."""
    sources: dict[str, InputSource] = {}
    """Facts by reference; missing ones are read from the files, or unknown."""
    resume: str | None = None
    """Folder of the checkpoint to continue from."""
    rendezvous: str | None = None
    """Host and port of the rendezvous with the other machines of a job; none: there are no others."""
    teacher_cache: CachePlace | None = None
    """Teacher cache; none: teacher outputs are not kept after the step."""


class Start(Message):
    """Run the job staged in `folder` (absolute)."""

    type: Literal["start"] = "start"
    folder: str


class Stop(Message):
    """Save a checkpoint after the current step, then exit."""

    type: Literal["stop"] = "stop"


Command = Annotated[Start | Stop, Field(discriminator="type")]


class Ready(Message):
    """The process is warm and waits for `Start`."""

    type: Literal["ready"] = "ready"


class PhaseBegan(Message):
    """A phase began, and the one before it ended."""

    type: Literal["phase"] = "phase"
    phase: Literal["staging", "mining", "training", "evaluating", "exporting"]


class StepProgress(Message):
    """Progress of training; sent at most about ten times a second."""

    type: Literal["progress"] = "progress"
    step: int
    """Optimizer steps done, over all attempts."""
    total_steps: int
    epoch: float
    """Epochs done, with fraction."""
    samples_per_second: float
    seconds_left: float | None


class Metrics(Message):
    """Values measured at one optimizer step, by name: `train/loss`, `train/loss/nkd`, `train/lr`,
    `train/mfu/teacher`, `eval/accuracy`, …"""

    type: Literal["metrics"] = "metrics"
    step: int
    values: dict[str, float]


class CheckpointSaved(Message):
    """A complete, synced checkpoint is in `path` (a folder)."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str


class Log(Message):
    """A line for the job's event log."""

    type: Literal["log"] = "log"
    level: Literal["info", "warning"] = "info"
    message: Text
    code: str | None = None
    """Kind of a warning, for the report: stable, in snake_case."""


class BundleFile(Message):
    """One file of the exported bundle."""

    name: str
    """File name within the bundle, or in a folder of it, as shown to the client."""
    path: str
    media_type: str


class Finished(Message):
    """The student was trained, exported, and evaluated from its exported files."""

    type: Literal["finished"] = "finished"
    artifacts: list[BundleFile]
    step: int


class Stopped(Message):
    """The trainer stopped on request, after the checkpoint that was reported last."""

    type: Literal["stopped"] = "stopped"
    step: int


class Failed(Message):
    """The job failed; a retry does not help if the fault is the user's."""

    type: Literal["failed"] = "failed"
    fault: Literal["user", "system", "capacity"]
    code: str
    """Stable, in snake_case: `invalid_data`, `nan_loss`, `out_of_memory`, …"""
    message: Text
    param: Text | None = None
    """Path of the field of the job that caused it, if any."""
    step: int | None = None
    """Optimizer step at which it occurred, if any."""


Report = Annotated[
    Ready | PhaseBegan | StepProgress | Metrics | CheckpointSaved | Log | Finished | Stopped | Failed,
    Field(discriminator="type"),
]
TrainerResult = Finished | Stopped | Failed
"""Result of an attempt."""
Send = Callable[[Report], None]
ShouldStop = Callable[[], bool]
"""Returns whether the job was requested to stop."""
COMMANDS: TypeAdapter[Command] = TypeAdapter(Command)
REPORTS: TypeAdapter[Report] = TypeAdapter(Report)
