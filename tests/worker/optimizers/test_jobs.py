"""Every optimizer runs a small job, and one that was stopped and resumed ends bit-equal to one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from app.recipe.optimizers import OPTIMIZERS, Inner
from tests.worker.training.builders import play, stage, weights
from worker.protocol import CheckpointSaved, Failed, Finished, Stopped

RESNET = {"architecture": "cifar-resnet", "depth": 8, "width": 2}
VIT = {"architecture": "vit", "patch_size": 3, "width": 8, "depth": 1, "heads": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05},
    "adamw": {},
    "adamp": {"weight_decay": 0.1},
    "sgdp": {"lr": 0.05, "momentum": 0.9},
    "sinkgd": {"weight_decay": 0.01},
    "swan": {},
}
JOBS = [({"kind": kind, **settings}, RESNET) for kind, settings in SETTINGS.items()]
JOBS += [({"kind": "nap", "inner": inner, "every_steps": 2}, student) for inner, student in JOBS]
JOBS += [({"kind": "normalized-gd", "lr": 0.1}, {"architecture": "mlp", "hidden": []})]
JOBS += [({"kind": kind}, VIT) for kind in ("adamp", "sinkgd", "swan")]
JOBS += [({"kind": "nap", "inner": {"kind": "swan", "whitening": "exact"}}, VIT)]


def test_every_optimizer_of_the_contract_has_a_job_here() -> None:
    assert {job["kind"] for job, _ in JOBS} == {option.model_fields["kind"].default for option in OPTIMIZERS}
    within = {option.model_fields["kind"].default for option in get_args(get_args(Inner)[0])}
    assert {job["inner"]["kind"] for job, _ in JOBS if "inner" in job} == within


@pytest.mark.parametrize(("optimizer", "student"), JOBS)
def test_stopping_and_resuming_changes_no_bit(
    tmp_path: Path, optimizer: dict[str, Any], student: dict[str, Any]
) -> None:
    asked = {"student": student, "recipe": {"optimizer": optimizer, "schedule": {"kind": "cosine"}, "epochs": 2}}
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    assert isinstance(play(stage(straight, **asked), straight).word, Finished)
    assignment = stage(halting, **asked)
    stopped = play(assignment, halting, steps=3)
    assert stopped.word == Stopped(step=3)
    resumed = assignment.model_copy(update={"resume": stopped.of(CheckpointSaved)[-1].path})
    assert isinstance(play(resumed, halting).word, Finished)
    assert weights(halting) == weights(straight)


def test_a_student_without_normalisation_is_refused_for_nap(tmp_path: Path) -> None:
    word = play(stage(tmp_path, recipe={"optimizer": {"kind": "nap", "inner": {"kind": "adamw"}}}), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", "invalid_job", "recipe.optimizer.kind")
