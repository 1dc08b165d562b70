"""What the supervisor and its trainer say to each other: one JSON object per line, over the trainer's stdin and stdout.

The supervisor stages a folder and sends `Start`. The trainer answers with the messages below, writes only inside the
folder and the cache that its assignment names, and ends with exactly one `Finished`, `Stopped` or `Failed`. Every path
in its messages is relative to the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from app.recipe.job import JobSpec
from app.recipe.teachers.cache import DEFAULT_BYTES

MAX_TEXT = 8192
"""Characters of a text in a message: a line may have a million bytes, and texts repeat what users have written."""


def _sendable(text: object) -> object:
    """The text, cut where it is too long, and without halves of surrogate pairs, which UTF-8 does not have."""
    if not isinstance(text, str):
        return text
    sound = text.encode("utf-8", "backslashreplace").decode()
    left = len(sound) - MAX_TEXT + 40  # room for what tells of the cut
    return sound if len(sound) <= MAX_TEXT else f"{sound[:-left]} … and {left} more characters"


Text = Annotated[str, BeforeValidator(_sendable)]
TRAINER_KILLED = "trainer_killed"
"""Code of the failure of an attempt whose trainer, or one of its processes, was killed from outside."""
NODE_LOST = "node_lost"
"""Code of the failure of an attempt of which another machine has gone."""


class Message(BaseModel):
    """Base of all messages; unknown keys are ignored, so that an older supervisor understands a newer trainer."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class CachePlace(Message):
    """Where on this machine the teachers' answers of all its jobs are kept."""

    folder: str
    """Absolute; made when it is missing, and not emptied after the job."""
    max_bytes: int = DEFAULT_BYTES
    """Of all that lies there; what was not used for longest makes room."""
    owner: str = ""
    """Only jobs of the same owner share answers: that one was kept tells that somebody has this teacher and data."""


class InputSource(Message):
    """What the service knows of an input."""

    name: str | None = None
    """Given by whoever sent it."""
    sha256: str | None = None
    """Of a data file."""


class Assignment(Message):
    """Content of `assignment.json` in the staged folder: all that the trainer needs to know."""

    spec: JobSpec
    """Resolved: the seed is set."""
    inputs: dict[str, str]
    """Staged path of every reference in the spec: a file, or the folder of a model's bundle."""
    sources: dict[str, InputSource] = {}
    """By reference; what is not told of an input is looked up in its files, or not known."""
    resume: str | None = None
    """Folder of the checkpoint to continue from."""
    rendezvous: str | None = None
    """Host and port at which the trainer meets the other machines of a job for several; none: there are no others."""
    teacher_cache: CachePlace | None = None
    """None: nothing of what teachers say outlives the step."""


class Start(Message):
    """Begin the work that lies staged in `folder` (absolute)."""

    type: Literal["start"] = "start"
    folder: str


class Stop(Message):
    """Save a checkpoint after the current step, then leave."""

    type: Literal["stop"] = "stop"


Command = Annotated[Start | Stop, Field(discriminator="type")]


class Ready(Message):
    """The process is warm and waits for `Start`."""

    type: Literal["ready"] = "ready"


class PhaseBegan(Message):
    """A phase began, and the one before it ended."""

    type: Literal["phase"] = "phase"
    phase: Literal["staging", "training", "evaluating", "exporting"]


class StepProgress(Message):
    """Where training stands; sent at most about ten times a second."""

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
    """A checkpoint lies complete and synced in `path` (a folder)."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str


class Log(Message):
    """Something for the job's event log."""

    type: Literal["log"] = "log"
    level: Literal["info", "warning"] = "info"
    message: Text
    code: str | None = None
    """Of a warning, for the report: what kind it is, stable, in snake_case."""


class BundleFile(Message):
    """One file of the exported bundle."""

    name: str
    """File name within the bundle, or in a folder of it, as the client will see it."""
    path: str
    media_type: str


class Finished(Message):
    """The student is trained, exported, and was measured from its exported files."""

    type: Literal["finished"] = "finished"
    artifacts: list[BundleFile]
    step: int


class Stopped(Message):
    """Left on request, after the checkpoint that was reported last."""

    type: Literal["stopped"] = "stopped"
    step: int


class Failed(Message):
    """The job can't go on; trying again would not help when the fault is the user's."""

    type: Literal["failed"] = "failed"
    fault: Literal["user", "system", "capacity"]
    code: str
    """Stable, in snake_case: `invalid_data`, `nan_loss`, `out_of_memory`, …"""
    message: Text
    param: Text | None = None
    """Path of the field of the job that is to blame, when one is."""
    step: int | None = None
    """Optimizer step at which it showed, when it was one."""


Report = Annotated[
    Ready | PhaseBegan | StepProgress | Metrics | CheckpointSaved | Log | Finished | Stopped | Failed,
    Field(discriminator="type"),
]
TrainerResult = Finished | Stopped | Failed
"""How an attempt ends."""
Send = Callable[[Report], None]
ShouldStop = Callable[[], bool]
"""Whether the job has been asked to stop."""
COMMANDS: TypeAdapter[Command] = TypeAdapter(Command)
REPORTS: TypeAdapter[Report] = TypeAdapter(Report)
