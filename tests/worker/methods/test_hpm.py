"""Students that reconstruct masked images, whose hardest patches are masked more and more often."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from tests.worker.tasks import test_self_supervised as self_supervised
from tests.worker.training.builders import Played, play, require_same_bits, require_same_bits_after_death, weights
from worker.methods.hard_patches import PatchMask, hard_count
from worker.methods.hpm import HpmStep
from worker.protocol import Assignment, Failed, Finished, Metrics
from worker.students.weights import load_model, read_config

Document = dict[str, Any]
STUDENT: Document = {"architecture": "vit", "patch_size": 2, "width": 8, "depth": 2, "heads": 2}
HPM: Document = {"kind": "hpm", "hard_share": 1.0, "decay": 0.5}
PLAIN: Document = {}
JOB: Document = {
    "task": "self-supervised",
    "data": {"train": "f", "augment": [{"kind": "resized-crop"}]},
    "student": STUDENT,
    "recipe": {"method": {"kind": "hpm"}},
}
LOSSES = ("loss", "loss/reconstruction", "loss/prediction")


def stage(folder: Path, method: Document = PLAIN, **changes: Any) -> Assignment:
    recipe = {"losses": [], "method": {**HPM, **method}, **changes.pop("recipe", {})}
    return self_supervised.stage(folder, **{"student": STUDENT, **changes}, recipe=recipe)


def ran(folder: Path, method: Document = PLAIN, **changes: Any) -> Played:
    played = play(stage(folder, method, **changes), folder)
    assert isinstance(played.word, Finished), played.word
    return played


def curves(played: Played) -> dict[str, list[float]]:
    """Values of each metric over the reports of steps."""
    found: dict[str, list[float]] = {}
    for report in played.of(Metrics):
        for name, value in report.values.items():
            found.setdefault(name, []).append(value)
    return found


def report(folder: Path) -> Document:
    told: Document = json.loads((folder / "bundle" / "report.json").read_text())
    return told


def test_a_job_that_is_stopped_resumes_to_the_same_bits(tmp_path: Path) -> None:
    recipe = {"epochs": 4, "ema_decay": 0.8, "optimizer": {"kind": "adamp", "lr": 0.01}}
    require_same_bits(partial(stage, recipe=recipe), tmp_path)
    straight, halting = (report(tmp_path / name)["train"]["average_flops"] for name in ("straight", "halting"))
    assert straight == halting > 0


def test_a_death_between_two_steps_repeats_those_since_the_checkpoint(tmp_path: Path) -> None:
    make = partial(stage, recipe={"checkpoint": {"every_steps": 2}})
    require_same_bits_after_death(make, HpmStep, tmp_path)


def test_masks_are_the_same_after_a_resume_and_hide_the_hardest_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []
    choose = HpmStep.mask

    def noted(self: HpmStep, stage: Any, state: Any, images: Tensor, masked: int, hard: int) -> PatchMask:
        mask = choose(self, stage, state, images, masked, hard)
        drawn.append(mask.masked)
        assert hard == hard_count(7, 1.0, state.step // 5, 2)  # of 9 patches 7 are masked; 5 steps are an epoch
        everything = torch.arange(9).expand(len(images), -1)
        hardest = self._average(images, everything).topk(hard, dim=1).indices
        assert (mask.masked.unsqueeze(1) == hardest.unsqueeze(2)).any(2).all()
        return mask

    monkeypatch.setattr(HpmStep, "mask", noted)
    require_same_bits(stage, tmp_path)
    straight, resumed = drawn[:10], drawn[10:]
    assert len(resumed) == 10
    assert all(torch.equal(one, other) for one, other in zip(straight, resumed, strict=True))
    assert not torch.equal(straight[0], straight[1])


def test_the_average_follows_the_student_with_the_decay_of_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, decays = HpmStep.__call__, []

    def checked(self: HpmStep, stage: Any, state: Any, step_inputs: Any) -> dict[str, Tensor]:
        before = {name: values.clone() for name, values in self._average.state_dict().items()}
        values = take(self, stage, state, step_inputs)
        decays.append(decay := float(values["average_decay"]))
        after, student = self._average.state_dict(), self._student.state_dict()
        for name, value in before.items():
            torch.testing.assert_close(after[name], decay * value + (1 - decay) * student[name])
        assert state.aux_modules["hpm-average"] is self._average  # so that it is in checkpoints
        assert not {*self._average.parameters()} & {*stage.learning(state.student)}
        return values

    monkeypatch.setattr(HpmStep, "__call__", checked)
    ran(tmp_path, {"decay": 0.5, "final_decay": 0.9, "decay_epochs": 2}, recipe={"epochs": 3})
    assert decays == pytest.approx([0.5] * 5 + [0.7] * 5 + [0.9] * 5)


@pytest.mark.parametrize("prediction", ["relative", "absolute"])
def test_everything_is_measured_and_counted_by_name(tmp_path: Path, prediction: str) -> None:
    played = ran(tmp_path, {"prediction": prediction}, recipe={"epochs": 3})
    found = curves(played)
    for name in (*LOSSES, "ordered_share", "hard_share", "average_decay", "grad_norm"):
        assert np.isfinite(found[f"train/{name}"]).all()
    total, *parts = (found[f"train/{name}"][0] for name in LOSSES)
    assert total == pytest.approx(sum(parts))
    train = report(tmp_path)["train"]
    for side in ("student", "decoders", "average"):
        assert found[f"train/flops/{side}"][-1] == train[f"{side}_flops"] > 0


def test_operations_are_those_of_the_layers(tmp_path: Path) -> None:
    """An epoch of 77 images of 9 patches, of which 2 are visible; 5 numbers are the student's vector."""
    ran(tmp_path, {"decoder": {"depth": 1}}, recipe={"epochs": 1})
    train = report(tmp_path)["train"]

    def block(tokens: int) -> int:
        return 2 * tokens * (4 * 8 * 8 + 2 * 8 * 32) + 2 * 2 * tokens * tokens * 8

    embedding, head, images = 2 * 9 * 4 * 8, 2 * 8 * 5, 77
    encoder = embedding + 2 * block(3)
    decoders = head + 2 * (5 * 8 + 2 * 8 * 8) + 2 * block(10) + 2 * 10 * 8 * (1 + 4)
    average = embedding + 2 * block(10) + head + 2 * (5 * 8 + 9 * 8 * 8) + block(10) + 2 * 10 * 8
    assert train["student_flops"] == 3 * images * encoder
    assert train["decoders_flops"] == 3 * images * decoders
    assert train["average_flops"] == images * average


def test_without_hard_patches_the_average_is_not_run(tmp_path: Path) -> None:
    found = curves(ran(tmp_path, {"hard_share": 0.0}))
    assert set(found["train/hard_share"]) == {0.0}
    assert report(tmp_path)["train"]["average_flops"] == 0


@pytest.mark.parametrize(
    "method",
    [
        {"mask_ratio": 0.5},
        {"hard_share": 0.0},
        {"prediction": "absolute"},
        {"stable": True},
        {"normalise_pixels": False},
        {"decoder": {"width": 12, "depth": 1, "heads": 3}},
        {"decay": 0.0, "final_decay": 0.0},
    ],
)
def test_every_option_changes_the_weights(tmp_path: Path, method: Document) -> None:
    for name, changes in (("plain", {}), ("changed", method)):
        ran(tmp_path / name, changes, recipe={"epochs": 3, "optimizer": {"kind": "adamw", "lr": 0.01}})
    assert weights(tmp_path / "plain") != weights(tmp_path / "changed")


@pytest.mark.parametrize(
    "recipe",
    [
        {"precision": "bf16"},
        {"channels_last": True, "clip_norm": 0.5},
        {"max_steps": 3},
        {"optimizer": {"kind": "swan"}},
    ],
)
def test_it_goes_with_other_settings_of_the_recipe(tmp_path: Path, recipe: Document) -> None:
    student = {**STUDENT, "attention": {"kind": "linear"}, "norm": {"kind": "rms"}}
    ran(tmp_path, {"stable": True}, recipe=recipe, student=student, embedding={"dimensions": 5, "normalise": True})


def test_digits_are_reconstructed_and_their_hard_patches_found(tmp_path: Path) -> None:
    """Digits of 8 x 8 pixels. Who knows nothing predicts 0, with a loss of 3/4 for each patch of 4 pixels that are not
    all the same, and orders half of the pairs."""
    assignment = stage(
        tmp_path,
        {"hard_share": 0.5, "decay": 0.9, "final_decay": 0.9},
        student={**STUDENT, "width": 32, "heads": 4},
        embedding={"dimensions": 32},
        data={"augment": [{"kind": "resized-crop", "least_area": 0.8}]},
        recipe={"epochs": 12, "batch_size": 64, "optimizer": {"kind": "adamw", "lr": 2e-3}},
    )
    digits = load_digits()
    np.savez(tmp_path / "data.npz", x=(digits.images * 15.9).astype(np.uint8), y=digits.target)
    played = play(assignment, tmp_path)
    assert isinstance(played.word, Finished), played.word
    found = curves(played)
    reconstruction, ordered = found["train/loss/reconstruction"], found["train/ordered_share"]
    assert reconstruction[-1] < 0.8 * reconstruction[0]
    assert ordered[-1] > 0.6
    assert found["train/loss/prediction"][-1] < 0.98 * np.log(2)


def test_the_exported_model_is_the_student_alone_and_a_start_of_others(tmp_path: Path) -> None:
    ran(tmp_path / "first")
    bundle = tmp_path / "first" / "bundle"
    assert {name.split(".")[1] for name in load_model(bundle).state_dict()} == {
        *("class_token", "positions", "embed", "blocks", "norm", "head")
    }
    classes: Document = {
        "task": "image-classification",
        "data": {"augment": []},
        "embedding": None,
        "student": {"architecture": "pretrained", "model": "old"},
        "recipe": {"losses": [{"kind": "cross-entropy"}], "method": {"kind": "supervised"}, "epochs": 1},
        "inputs": {"old": str(bundle)},
    }
    ran_on = play(self_supervised.stage(tmp_path / "second", **classes), tmp_path / "second")
    assert isinstance(ran_on.word, Finished), ran_on.word
    assert read_config(tmp_path / "second" / "bundle").classes == 8


def test_too_few_patches_are_the_users_fault(tmp_path: Path) -> None:
    word = play(stage(tmp_path, student={**STUDENT, "patch_size": 6}), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", "invalid_job", "recipe.method.mask_ratio")
    assert "1 of the 1 patches" in word.message


@pytest.mark.parametrize(
    ("changes", "param", "told"),
    [
        (
            {"student": {"architecture": "mlp"}},
            "student.architecture",
            "is mlp, and hpm masks the patches of a vit; vit",
        ),
        ({"student": {"architecture": "pretrained", "model": "m"}}, "student.architecture", "is pretrained"),
        ({"student": {"architecture": "timm", "model": "vit_tiny"}}, "student.architecture", "is timm"),
        (
            {"recipe": {"losses": [{"kind": "ntxent"}]}},
            "recipe.losses",
            "is given, and hpm has losses of its own; none",
        ),
        ({"recipe": {"accumulate": 2}}, "recipe.accumulate", "the pairs of a whole batch"),
        ({"recipe": {"compile": True}}, "recipe.compile", "runs the student's blocks on visible patches"),
        ({"recipe": {"stages": [{"losses": [{"kind": "ntxent"}], "epochs": 1}]}}, "recipe.stages", "is given"),
        ({"recipe": {"pseudo_labels": {}}}, "recipe.pseudo_labels", "no loss compares views"),
        ({"recipe": {"optimizer": {"kind": "normalized-gd", "lr": 1.0}}}, "recipe.optimizer.kind", "normalized-gd"),
        ({"teacher": {"model": "t"}}, "teacher", "no loss learns from it"),
        ({"resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}}, "resources.sharding", "is fsdp"),
        ({"recipe": {"method": {"kind": "hpm", "decoder": {"heads": 3}}}}, "recipe.method.decoder.heads", "3 heads"),
        ({"recipe": {"method": {"kind": "hpm", "decoder": {"width": 9}}}}, "recipe.method.decoder.width", "width of 9"),
        (
            {"recipe": {"method": {"kind": "hpm", "prediction": "absolute", "stable": True}}},
            "recipe.method.stable",
            "only the relative loss has two forms; false",
        ),
        ({"task": "image-embedding"}, "recipe.method.kind", "is hpm, which is not for image-embedding"),
        ({"task": "image-classification", "embedding": None}, "recipe.method.kind", "a task of self-supervised"),
        ({"recipe": {"method": {"kind": "supervised"}}}, "recipe.losses", "is empty, and supervised minimises them"),
        ({"recipe": {"method": {"kind": "rollback"}}}, "recipe.method.kind", "is rollback"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_field(changes: Document, param: str, told: str) -> None:
    job = {**JOB, **changes, "recipe": {**JOB["recipe"], **changes.get("recipe", {})}}
    found = {each.param: f"{each.message}; {each.accepted}" for each in find_problems(JobSpec.model_validate(job))}
    assert param in found
    assert told in found[param]


def test_a_recipe_may_leave_its_losses_out() -> None:
    job = JobSpec.model_validate(JOB)
    assert find_problems(job) == []
    again = JobSpec.model_validate_json(job.model_dump_json())
    assert again == job
    assert again.recipe.losses == []
