"""Checkpoints on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan, plan_training
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from tests.worker.training.builders import document
from worker.optimizers import build_optimizer
from worker.training import checkpoint
from worker.training.checkpoint import (
    CheckpointError,
    read_for,
    read_record,
    restore,
    save,
    saved,
    training_digest,
)
from worker.training.state import TrainState, fresh_student, initial_state


def job(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(document(**changes))


def fresh(spec: JobSpec) -> TrainState:
    config = ModelConfig(
        architecture=spec.student,
        input=ImageInput(channels=1, height=2, width=2),
        preprocessing=Preprocessing(mean=[0.0], std=[1.0]),
        classes=3,
    )
    state = initial_state(spec.recipe, fresh_student(config, 0))
    state.optimizer = build_optimizer(spec.recipe.optimizer, state.student.parameters())
    return state


def plan(spec: JobSpec, samples: int = 40) -> TrainingPlan:
    return plan_training(spec.recipe, samples)


def at(spec: JobSpec, step: int) -> TrainState:
    state = fresh(spec)
    state.step = step
    return state


def store(state: TrainState, root: Path) -> Path:
    return save(state, job(), plan(job()), root)


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        store(at(job(), step), tmp_path)
    assert [folder.name for folder in saved(tmp_path)] == ["step-100", "step-10"]


def test_later_steps_of_an_abandoned_run_are_removed(tmp_path: Path) -> None:
    for step in (5, 10, 7):
        store(at(job(), step), tmp_path)
    assert [folder.name for folder in saved(tmp_path)] == ["step-7", "step-5"]


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    first, second = store(at(job(), 5), tmp_path), store(at(job(), 5), tmp_path)
    assert first == second
    assert read_record(second).step == 5


def test_an_incomplete_checkpoint_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(at(job(), 3), tmp_path)

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", fail)
    with pytest.raises(OSError, match="No space"):
        store(at(job(), 6), tmp_path)
    assert [folder.name for folder in saved(tmp_path)] == ["step-3"]


def test_random_states_and_clock_are_restored(tmp_path: Path) -> None:
    state = at(job(), 4)
    state.seconds = 12.5
    folder = store(state, tmp_path)
    expected = torch.rand(3)
    again = fresh(job())
    restore(again, read_for(job(), plan(job()), folder), plan(job()), folder)
    assert torch.equal(torch.rand(3), expected)
    assert (again.step, again.seconds) == (4, 12.5)


def test_other_data_are_refused(tmp_path: Path) -> None:
    folder = store(at(job(), 4), tmp_path)
    with pytest.raises(CheckpointError, match="other data"):
        read_for(job(), plan(job(), 41), folder)


def test_a_missing_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step-1 is incomplete"):
        read_record(tmp_path / "step-1")


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"student": {"architecture": "mlp", "hidden": [9]}},
        {"recipe": {"epochs": 4}},
        {"recipe": {"optimizer": {"kind": "adamw", "lr": 2e-3}}},
        {"data": {"train": "other"}},
        {"teacher": True},
    ],
)
def test_the_digest_changes_with_every_field_that_affects_the_weights(changes: dict[str, Any]) -> None:
    assert training_digest(job(**changes)) != training_digest(job())


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "n"},
        {"labels": {"a": "b"}},
        {"priority": 1},
        {"export": ["safetensors", "onnx"]},
        {"recipe": {"checkpoint": {"every_steps": 3}}},
        {"resources": {"max_seconds": 5.0}},
    ],
)
def test_the_digest_ignores_the_rest(changes: dict[str, Any]) -> None:
    assert training_digest(job(**changes)) == training_digest(job())
