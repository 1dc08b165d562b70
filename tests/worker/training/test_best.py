"""The best evaluated epoch, and its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.worker.training.builders import play, stage, weights
from worker.protocol import Assignment, CheckpointSaved, Finished, Stopped
from worker.training import evaluator as evaluator_module
from worker.training.state import TrainState

ACCURACIES = [0.25, 0.5, 0.75, 0.5, 0.75, 0.25]
"""Accuracies of the scripted epochs: the third one is the first of the best, and the later one no better."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the evaluations during training return `ACCURACIES`."""
    real = evaluator_module.update_best

    def scripted_update(state: TrainState, main: Any, metrics: dict[str, float], model: Any) -> None:
        metrics["accuracy"] = ACCURACIES[state.step // 3 - 1]
        metrics["nll"] = 1.0
        real(state, main, metrics, model)

    monkeypatch.setattr(evaluator_module, "update_best", scripted_update)


def job(folder: Path, **changes: Any) -> Assignment:
    return stage(folder, recipe={"epochs": 6, **changes.pop("recipe", {})}, evaluation={"keep": "best"}, **changes)


def epochs_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bundle" / "report.json").read_text())["epochs"]
    return found


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("recipe", [{}, {"ema_decay": 0.5}], ids=["plain", "ema"])
def test_the_weights_of_the_best_epoch_are_exported(tmp_path: Path, recipe: dict[str, Any]) -> None:
    assert isinstance(play(job(tmp_path / "whole", recipe=recipe), tmp_path / "whole").word, Finished)
    play(job(tmp_path / "short", recipe={**recipe, "epochs": 3}), tmp_path / "short")
    assert weights(tmp_path / "whole") == weights(tmp_path / "short")
    assert epochs_in(tmp_path / "whole")["best"]["step"] == 9
    assert epochs_in(tmp_path / "whole")["kept"] == "best"


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("steps", [7, 9, 11, 17])
def test_they_survive_a_resume(tmp_path: Path, steps: int) -> None:
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    play(job(straight), straight)
    stopped = play(job(halting), halting, steps=steps)
    assert isinstance(stopped.word, Stopped)
    resume = stopped.of(CheckpointSaved)[-1].path
    assert isinstance(play(job(halting).model_copy(update={"resume": resume}), halting).word, Finished)
    assert weights(halting) == weights(straight)
    assert epochs_in(halting)["best"] == epochs_in(straight)["best"]


@pytest.mark.usefixtures("scripted")
def test_the_last_weights_are_exported_by_default(tmp_path: Path) -> None:
    play(stage(tmp_path / "a", recipe={"epochs": 6}), tmp_path / "a")
    play(job(tmp_path / "b"), tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "b")
    assert epochs_in(tmp_path / "a")["best"]["step"] == epochs_in(tmp_path / "b")["best"]["step"] == 9


def test_a_checkpoint_without_the_best_weights_is_refused_if_they_are_needed(tmp_path: Path) -> None:
    stopped = play(stage(tmp_path, recipe={"epochs": 6}), tmp_path, steps=4)
    word = play(job(tmp_path).model_copy(update={"resume": stopped.of(CheckpointSaved)[-1].path}), tmp_path).word
    assert getattr(word, "code", None) == "bad_checkpoint"


def test_the_interval_of_evaluations_may_change_between_attempts(tmp_path: Path) -> None:
    stopped = play(stage(tmp_path), tmp_path, steps=4)
    again = stage(tmp_path, evaluation={"every_epochs": 2, "ece_bins": 3})
    word = play(again.model_copy(update={"resume": stopped.of(CheckpointSaved)[-1].path}), tmp_path).word
    assert isinstance(word, Finished)


def test_the_curves_of_all_attempts_are_in_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("worker.bundle.writer.draw_curves", lambda points, *_: seen.extend(p.step for p in points))
    stopped = play(stage(tmp_path), tmp_path, steps=4)
    play(stage(tmp_path).model_copy(update={"resume": stopped.of(CheckpointSaved)[-1].path}), tmp_path)
    assert seen[0] == 1
    assert seen[-1] == 9
    assert {3, 6, 9} <= set(seen)
