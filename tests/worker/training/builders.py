"""Stages small jobs and runs them in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
import torch

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Mlp, Student
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.bundle import writer
from worker.distributed.ranks import SINGLE_PROCESS, SingleProcess
from worker.protocol import Assignment, CheckpointSaved, Failed, Finished, Report, Stopped
from worker.students.model import Model
from worker.students.weights import WEIGHTS, save_model
from worker.trainer.run import run
from worker.training import measure

SIDE, CLASSES, SAMPLES = 6, 4, 50
NEVER = 10**9
Message = TypeVar("Message")


class Played(NamedTuple):
    """Reports and result of a run."""

    reports: list[Report]
    word: Finished | Stopped | Failed

    def of(self, kind: type[Message]) -> list[Message]:
        """All reports of one kind."""
        return [report for report in self.reports if isinstance(report, kind)]


def write_data(path: Path, **changes: Any) -> None:
    """Images of four classes that a small network can distinguish: 40 to train on, 10 to hold out."""
    random = np.random.default_rng(0)
    templates = random.integers(40, 216, (CLASSES, SIDE, SIDE))
    labels = np.arange(SAMPLES) % CLASSES
    images = (templates[labels] + random.integers(-30, 30, (SAMPLES, SIDE, SIDE))).astype(np.uint8)
    np.savez(path, **{"x": images, "y": labels, **changes})


def write_teacher(folder: Path, student: Student | None = None, classes: int = CLASSES, side: int = SIDE) -> None:
    """A model with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    config = ModelConfig(
        architecture=student or Mlp(hidden=[12]),
        input=ImageInput(channels=1, height=side, width=side),
        preprocessing=Preprocessing(scale=1 / 255, mean=[0.5], std=[0.3]),
        classes=classes,
    )
    save_model(Model(config), folder)


def document(teacher: bool = False, **changes: Any) -> dict[str, Any]:
    """A job as a document; `recipe` in `changes` replaces single fields of the recipe."""
    losses = [{"kind": "cross-entropy"}, *([{"kind": "nkd"}] if teacher else [])]
    recipe = {"losses": losses, "epochs": 3, "batch_size": 16, **changes.pop("recipe", {})}
    base: dict[str, Any] = {
        "data": {"train": "data"},
        "student": {"architecture": "mlp", "hidden": [8]},
        "export": ["safetensors"],
        "seed": 3,
        "recipe": recipe,
    }
    return base | ({"teacher": {"model": "teacher"}} if teacher else {}) | changes


def stage(folder: Path, **changes: Any) -> Assignment:
    """Put a job's inputs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder / "data.npz")
    write_data(folder / "binary.npz", y=np.arange(SAMPLES) % CLASSES % 2)
    write_teacher(folder / "teacher")
    spec = JobSpec.model_validate_json(JobSpec.model_validate(document(**changes)).model_dump_json())
    return Assignment(spec=spec, inputs={"data": "data.npz", "binary": "binary.npz", "teacher": "teacher"})


def play(assignment: Assignment, folder: Path, steps: int = NEVER, ranks: SingleProcess = SINGLE_PROCESS) -> Played:
    """Run the job, or a rank's share of it; it is stopped once `steps` steps are done."""
    reports: list[Report] = []
    left = iter(range(steps - 1, -1, -1))
    word = run(assignment, folder, reports.append, lambda: next(left) == 0, ranks)
    return Played(reports, word)


def shorten_bundles(patch: pytest.MonkeyPatch) -> None:
    """No picture and one measurement of latency: they take ten times as long as the training of a small job."""
    patch.setattr(writer, "draw_curves", lambda *_: None)
    patch.setattr(measure, "RUNS", 1)


def weights(folder: Path) -> bytes:
    """The exported weights, byte by byte."""
    return (folder / "bundle" / WEIGHTS).read_bytes()


def with_teacher(folder: Path, job: dict[str, Any], teacher: Path | None) -> Assignment:
    """A job on the file `texts` in `folder`, where a copy of the teacher's files goes, too."""
    inputs = {"texts": "texts"}
    if teacher is not None:
        shutil.copytree(teacher, folder / "teacher")
        inputs["teacher"] = "teacher"
        job = {**job, "teacher": {"model": "teacher"}}
    return Assignment(spec=JobSpec.model_validate(job), inputs=inputs)


def finished(folder: Path, assignment: Assignment) -> Path:
    """The bundle of a job that must succeed."""
    word = play(assignment, folder).word
    assert isinstance(word, Finished), word
    return folder / "bundle"


def require_same_bits(make: Callable[[Path], Assignment], scratch: Path) -> None:
    """A job that is stopped after two steps and resumed ends with the weights of one that was not stopped."""
    straight, halting = scratch / "straight", scratch / "halting"
    finished(straight, make(straight))
    assignment = make(halting)
    saved = play(assignment, halting, steps=2).of(CheckpointSaved)[-1].path
    finished(halting, assignment.model_copy(update={"resume": saved}))
    assert weights(halting) == weights(straight)


def require_same_bits_after_death(make: Callable[[Path], Assignment], step: type[Any], scratch: Path) -> None:
    """A job that saves every two steps, and dies before the fourth call of `step`, repeats those since the checkpoint
    and ends with the weights of one that ran through. Their folders in `scratch` are `cut` and `straight`."""
    cut, straight = scratch / "cut", scratch / "straight"
    assignment, take, left = make(cut), step.__call__, iter(range(3))

    def dies(self: Any, *args: Any) -> Any:
        if next(left, None) is None:
            raise RuntimeError("killed")
        return take(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "__call__", dies)
        played = play(assignment, cut)
    assert isinstance(played.word, Failed)
    saved = played.of(CheckpointSaved)[-1]
    assert saved.step == 2
    finished(cut, assignment.model_copy(update={"resume": saved.path}))
    finished(straight, make(straight))
    assert weights(cut) == weights(straight)
