"""A run that was stopped and resumed ends bit-equal to one that was not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.worker.training.builders import Played, play, stage, weights
from worker.protocol import (
    Assignment,
    CheckpointSaved,
    Failed,
    Finished,
    Metrics,
    PhaseBegan,
    StepProgress,
    Stopped,
)

STEPS = 9
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"recipe": {"optimizer": {"kind": "sgd", "lr": 0.05, "nesterov": True}}},
    "sgd-plain": {"recipe": {"optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.0}}},
    "adamp": {"recipe": {"optimizer": {"kind": "adamp", "weight_decay": 0.1}, "clip_norm": 0.5}},
    "sgdp": {"recipe": {"optimizer": {"kind": "sgdp", "lr": 0.05, "momentum": 0.9}}},
    "teacher": {"teacher": True},
    "ema": {"recipe": {"ema_decay": 0.8}},
    "accumulate": {"recipe": {"accumulate": 3}},
    "bf16": {"recipe": {"precision": "bf16"}},
    "schedule": {"recipe": {"schedule": {"kind": "cosine", "warmup_steps": 4}}},
    "augmented": {
        "data": {
            "train": "data",
            "augment": [{"kind": name} for name in ("crop", "flip", "rand-augment", "mixup", "cutmix")],
            "augment_epochs": 2,
        },
        "teacher": True,
    },
    "resnet": {"student": {"architecture": "cifar-resnet", "depth": 8, "width": 2}, "recipe": {"ema_decay": 0.5}},
    "qat": {
        "student": {"architecture": "cifar-resnet", "depth": 8, "width": 2, "quantise": {"kind": "qat"}},
        "recipe": {"ema_decay": 0.5},
        "teacher": True,
    },
    "shift-quant": {
        "student": {"architecture": "mlp", "hidden": [8], "quantise": {"kind": "shift-quant", "bits": 4}},
        "recipe": {"accumulate": 2},
    },
    "binary": {
        "student": {"architecture": "mlp", "hidden": [8, 8, 8], "quantise": {"kind": "binary"}},
        "recipe": {"ema_decay": 0.5, "accumulate": 2},
    },
    "wide-resnet": {"student": {"architecture": "wide-resnet", "depth": 10}, "recipe": {"precision": "bf16"}},
    "vit": {
        "student": {"architecture": "vit", "patch_size": 3, "width": 8, "depth": 1, "heads": 2},
        "recipe": {"optimizer": {"kind": "adamp"}, "ema_decay": 0.9, "accumulate": 2},
        "teacher": True,
    },
    **{
        f"{kind} norm": {
            "student": {
                **{"architecture": "vit", "patch_size": 3, "width": 8, "depth": 1, "heads": 2},
                "norm": {"kind": kind, "warmup_steps": 3},
            },
            "recipe": {"precision": precision, "accumulate": accumulate},
        }
        for kind, precision, accumulate in (("power", "bf16", 2), ("unified", "fp32", 1))
    },
    "alpha-dropout": {
        "student": {"architecture": "mlp", "hidden": [8, 8], "activation": {"kind": "selu", "alpha_dropout": 0.2}}
    },
    "l1 norm of batches": {
        "student": {"architecture": "cifar-resnet", "depth": 8, "width": 2, "norm": {"kind": "l1-batch"}},
        "recipe": {"ema_decay": 0.5},
    },
}


def resumed(assignment: Assignment, stopped: Played) -> Assignment:
    return assignment.model_copy(update={"resume": stopped.of(CheckpointSaved)[-1].path})


@pytest.mark.parametrize("name", CASES)
def test_stopping_anywhere_and_resuming_changes_no_bit(tmp_path: Path, name: str) -> None:
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    assert isinstance(play(stage(straight, **CASES[name]), straight).word, Finished)

    assignment = stage(halting, **CASES[name])
    first, second = sorted(random.Random(name).sample(range(1, STEPS), 2))
    stopped = play(assignment, halting, steps=first)
    assert stopped.word == Stopped(step=first)
    again = play(resumed(assignment, stopped), halting, steps=second - first)
    assert again.word == Stopped(step=second)
    last = play(resumed(assignment, again), halting)
    assert isinstance(last.word, Finished)
    assert last.word.step == STEPS
    assert weights(halting) == weights(straight)


def test_published_steps_continue_after_the_checkpoint(tmp_path: Path) -> None:
    assignment = stage(tmp_path)
    stopped = play(assignment, tmp_path, steps=4)
    steps = [report.step for report in play(resumed(assignment, stopped), tmp_path).of(Metrics)]
    assert steps == sorted(steps)
    assert steps[0] == 5


def test_a_stop_after_the_last_step_still_leaves_a_checkpoint(tmp_path: Path) -> None:
    assignment = stage(tmp_path)
    stopped = play(assignment, tmp_path, steps=STEPS)
    assert stopped.word == Stopped(step=STEPS)
    rest = play(resumed(assignment, stopped), tmp_path)
    assert isinstance(rest.word, Finished)
    assert [report.phase for report in rest.of(PhaseBegan)] == ["training", "evaluating", "exporting"]


def test_a_death_after_training_repeats_no_step_and_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the trainer had been killed while it evaluated, and then while it exported."""
    assignment = stage(tmp_path / "cut")
    for place in ("TrainedJob", "write_bundle"):
        with monkeypatch.context() as patched:
            patched.setattr(f"worker.trainer.run.{place}", lambda *_, **__: 1 / 0)
            cut = play(assignment, tmp_path / "cut")
        assert isinstance(cut.word, Failed)
        if place == "write_bundle":
            assert not cut.of(StepProgress), "nothing was trained again"
        else:
            assignment = resumed(assignment, cut)
    rest = play(assignment, tmp_path / "cut")
    assert isinstance(rest.word, Finished)
    assert not rest.of(StepProgress)
    assert isinstance(play(stage(tmp_path / "straight"), tmp_path / "straight").word, Finished)
    assert weights(tmp_path / "cut") == weights(tmp_path / "straight")


def test_a_stop_during_the_last_evaluation_is_heeded(tmp_path: Path) -> None:
    stopped = play(stage(tmp_path), tmp_path, steps=STEPS + 1)
    assert stopped.word == Stopped(step=STEPS)
    assert stopped.of(CheckpointSaved)[-1].step == STEPS


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        play(stage(tmp_path / name, seed=seed), tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def failure(assignment: Assignment, folder: Path) -> Failed:
    word = play(assignment, folder).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code) == ("system", "bad_checkpoint")
    return word


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    stopped = play(stage(tmp_path), tmp_path, steps=2)
    other = stage(tmp_path, recipe={"batch_size": 8})
    assert "another job" in failure(resumed(other, stopped), tmp_path).message


def test_fields_that_do_not_affect_the_weights_may_change_between_attempts(tmp_path: Path) -> None:
    stopped = play(stage(tmp_path), tmp_path, steps=2)
    renamed = stage(tmp_path, name="renamed", priority=99, recipe={"checkpoint": {"every_steps": 1}})
    assert isinstance(play(resumed(renamed, stopped), tmp_path).word, Finished)


@pytest.mark.parametrize("name", ["checkpoint.json", "state.safetensors"])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    assignment = stage(tmp_path)
    stopped = play(assignment, tmp_path, steps=2)
    path = tmp_path / stopped.of(CheckpointSaved)[-1].path / name
    path.write_bytes(path.read_bytes()[:-5])
    assert "corrupt" in failure(resumed(assignment, stopped), tmp_path).message


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    assignment = stage(tmp_path)
    stopped = play(assignment, tmp_path, steps=2)
    path = tmp_path / stopped.of(CheckpointSaved)[-1].path / "checkpoint.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    assert "another format" in failure(resumed(assignment, stopped), tmp_path).message


def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    assignment = stage(tmp_path)
    stopped = play(assignment, tmp_path, steps=2)
    path = tmp_path / stopped.of(CheckpointSaved)[-1].path / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert "digest" in failure(resumed(assignment, stopped), tmp_path).message
