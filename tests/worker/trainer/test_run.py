"""A whole job in one process: what it says, what it leaves, how it fails."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.recipe.job import JobSpec
from app.recipe.students.model import ModelConfig
from tests.worker.training.builders import CLASSES, Played, play, stage, write_data, write_teacher
from worker.bundle import writer as bundle
from worker.methods import supervised
from worker.protocol import (
    Assignment,
    CheckpointSaved,
    Failed,
    Finished,
    Log,
    Metrics,
    PhaseBegan,
    StepProgress,
)
from worker.training import checkpoint

EVERY_STEP = {"checkpoint": {"every_steps": 1}}


def values(played: Played, name: str) -> list[float]:
    return [report.values[name] for report in played.of(Metrics) if name in report.values]


def failure(assignment: Assignment, folder: Path) -> Failed:
    word = play(assignment, folder).word
    assert isinstance(word, Failed)
    return word


def test_a_job_trains_evaluates_and_exports(tmp_path: Path) -> None:
    played = play(stage(tmp_path, recipe={"epochs": 30, "optimizer": {"kind": "adamw", "lr": 0.01}}), tmp_path)
    assert isinstance(played.word, Finished)
    assert [report.phase for report in played.of(PhaseBegan)] == ["training", "evaluating", "exporting"]
    assert values(played, "train/loss")[-1] < values(played, "train/loss")[0]
    assert values(played, "eval/accuracy")[-1] > 0.9
    assert played.of(StepProgress)[-1].step == played.of(StepProgress)[-1].total_steps == played.word.step == 90
    assert played.of(StepProgress)[-1].epoch == 30.0


def test_a_distillation_measures_the_student_against_its_teacher(tmp_path: Path) -> None:
    played = play(stage(tmp_path, teacher=True, recipe={"clip_norm": 1.0}), tmp_path)
    assert isinstance(played.word, Finished)
    first = played.of(Metrics)[0].values
    terms = {"train/loss", "train/loss/cross-entropy", "train/loss/nkd", "train/lr", "train/grad_norm"}
    work = {f"train/{what}/{side}" for what in ("flops", "mfu") for side in ("student", "teacher")}
    assert terms | work == set(first)
    metrics = {"accuracy", "nll", "ece", "adaptive_ece", "brier", "agreement", "kl"}
    assert {f"eval/{name}" for name in metrics} == set(played.of(Metrics)[-1].values)


@pytest.mark.usefixtures("drawn")
def test_every_artifact_is_there_and_its_description_can_be_read(tmp_path: Path) -> None:
    word = play(stage(tmp_path, teacher=True, name="small one"), tmp_path).word
    assert isinstance(word, Finished)
    names = [artifact.name for artifact in word.artifacts]
    assert names == ["model.safetensors", "config.json", "report.json", "curves.png", "recipe.json", "README.md"]
    assert all((tmp_path / artifact.path).stat().st_size > 0 for artifact in word.artifacts)
    folder = tmp_path / "bundle"
    assert ModelConfig.model_validate_json((folder / "config.json").read_text()).classes == CLASSES
    assert JobSpec.model_validate_json((folder / "recipe.json").read_text()).seed == 3
    header, _, card = (folder / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    assert "pipeline_tag: image-classification" in header
    assert card.lstrip().startswith("# small one\n")


def test_the_report_tells_of_student_teacher_and_training(tmp_path: Path) -> None:
    played = play(stage(tmp_path, teacher=True), tmp_path)
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    metrics = {"accuracy", "nll", "ece", "latency_ms_p50", "latency_ms_p95", "parameters", "bytes"}
    assert metrics | {"agreement", "kl"} <= set(report["student"])
    assert metrics <= set(report["teacher"])
    assert report["samples"] == {"train": 40, "eval": 10}
    assert report["student"]["parameters"] == 36 * 8 + 8 + 8 * 4 + 4
    assert report["student"]["bytes"] == (tmp_path / "bundle" / "model.safetensors").stat().st_size
    assert report["teacher"]["bytes"] == (tmp_path / "teacher" / "model.safetensors").stat().st_size
    assert report["student"]["accuracy"] == values(played, "eval/accuracy")[-1]
    assert report["train"]["steps"] == 9
    assert report["train"]["seconds"] > 0
    assert (report["task"], report["seed"]) == ("image-classification", 3)


def test_a_bundle_serves_as_the_next_jobs_teacher(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    play(stage(first), first)
    assignment = stage(second, teacher=True)
    inputs = {**assignment.inputs, "teacher": str(first / "bundle")}
    assert isinstance(play(assignment.model_copy(update={"inputs": inputs}), second).word, Finished)


def test_evaluations_come_every_so_many_epochs_and_at_the_end(tmp_path: Path) -> None:
    played = play(stage(tmp_path, recipe={"epochs": 5}, evaluation={"every_epochs": 2}), tmp_path)
    assert [report.step for report in played.of(Metrics) if "eval/nll" in report.values] == [6, 12, 15]


def test_checkpoints_come_every_so_many_steps_and_at_the_end_and_two_are_kept(tmp_path: Path) -> None:
    played = play(stage(tmp_path, recipe={"checkpoint": {"every_steps": 2}}), tmp_path)
    assert [report.path for report in played.of(CheckpointSaved)] == [f"checkpoints/step-{n}" for n in (2, 4, 6, 8, 9)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-8", "step-9"]


def test_what_was_trained_is_saved_before_it_is_evaluated(tmp_path: Path) -> None:
    never = {"checkpoint": {"every_steps": None, "every_seconds": None}}
    reports = play(stage(tmp_path, recipe=never), tmp_path).reports
    told = [type(report) for report in reports if isinstance(report, CheckpointSaved | PhaseBegan)]
    assert told == [PhaseBegan, CheckpointSaved, PhaseBegan, PhaseBegan]
    assert (tmp_path / "checkpoints" / "step-9").is_dir()


def test_missing_classes_are_worth_a_warning(tmp_path: Path) -> None:
    played = play(stage(tmp_path, data={"train": "data", "classes": 9}), tmp_path)
    assert [report.message for report in played.of(Log)] == [
        "only 4 of 9 classes have a training sample; without one: '4', '5', '6', '7', '8'"
    ]


def test_a_loss_that_diverges_fails_naming_the_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = supervised.take_step

    def poisoned(stage: Any, state: Any, batch: Any) -> dict[str, torch.Tensor]:
        found = real(stage, state, batch)
        return found | {"loss": found["loss"] * torch.nan} if state.step == 4 else found

    monkeypatch.setattr(supervised, "take_step", poisoned)
    played = play(stage(tmp_path, recipe=EVERY_STEP), tmp_path)
    assert isinstance(played.word, Failed)
    assert (played.word.fault, played.word.code, played.word.step) == ("user", "nan_loss", 5)
    assert "loss became nan at step 5" in played.word.message
    assert played.of(CheckpointSaved)[-1].step == 4
    assert checkpoint.read_record(tmp_path / "checkpoints" / "step-4").step == 4
    assert not (tmp_path / "checkpoints" / "step-5").exists()


def test_an_absurd_learning_rate_fails_as_the_users_fault(tmp_path: Path) -> None:
    recipe = {"optimizer": {"kind": "sgd", "lr": 1e30}, "epochs": 20}
    word = failure(stage(tmp_path, recipe=recipe), tmp_path)
    assert (word.fault, word.code, word.param) == ("user", "nan_loss", "recipe.optimizer.lr")


def spoil(state: Any, value: float) -> None:
    next(state.student.parameters()).data.fill_(value)


@pytest.mark.parametrize(
    ("value", "recipe", "what"),
    [
        (torch.inf, EVERY_STEP, "a weight is not finite after step 2"),
        (1e38, {}, "the logits of held-out samples are not finite after step 3"),
    ],
)
def test_a_step_that_overflows_spoils_neither_checkpoint_nor_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, recipe: dict[str, Any], what: str
) -> None:
    real = supervised.take_step
    last = 1 if recipe else 2

    def overflowing(stage: Any, state: Any, batch: Any) -> dict[str, torch.Tensor]:
        found = real(stage, state, batch)
        if state.step == last:
            spoil(state, value)
        return found

    monkeypatch.setattr(supervised, "take_step", overflowing)
    played = play(stage(tmp_path, recipe=recipe), tmp_path)
    assert isinstance(played.word, Failed)
    assert (played.word.code, played.word.step) == ("nan_loss", last + 1)
    assert what in played.word.message
    assert all(report.step <= last for report in played.of(CheckpointSaved))


def test_bad_data_fails_as_the_users_fault(tmp_path: Path) -> None:
    assignment = stage(tmp_path)
    write_data(tmp_path / "data.npz", y=np.arange(50) - 1)
    word = failure(assignment, tmp_path)
    assert (word.fault, word.code, word.param) == ("user", "invalid_data", "data.train")
    assert "label -1 at index 0" in word.message


def test_teacher_and_student_see_images_of_sizes_of_their_own(tmp_path: Path) -> None:
    assignment = stage(tmp_path, teacher=True, student_image_size=[4, 4], export=["safetensors", "onnx"])
    write_teacher(tmp_path / "teacher", side=9)
    played = play(assignment, tmp_path)
    assert isinstance(played.word, Finished), played.word
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert (config["input"]["height"], config["input"]["width"]) == (4, 4)
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert report["student"]["onnx"]["accuracy"] == report["student"]["accuracy"]


def test_a_bad_teacher_fails_as_the_users_fault(tmp_path: Path) -> None:
    assignment = stage(tmp_path, teacher=True)
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"no weights")
    word = failure(assignment, tmp_path)
    assert (word.fault, word.code, word.param) == ("user", "invalid_teacher", "teacher.model")


def test_a_teacher_of_other_classes_fails_as_the_users_fault(tmp_path: Path) -> None:
    assignment = stage(tmp_path, teacher=True, data={"train": "data", "classes": 4})
    write_teacher(tmp_path / "teacher", classes=5)
    assert failure(assignment, tmp_path).param == "data.classes"


@pytest.mark.parametrize(
    ("error", "fault", "code"),
    [
        (MemoryError(), "capacity", "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "capacity", "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "capacity", "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "capacity", "disk_full"),
        (RuntimeError("secret /internal/path"), "system", "internal_error"),
    ],
)
def test_other_errors_are_sorted_by_fault_and_tell_nothing_internal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, fault: str, code: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(supervised, "take_step", fail)
    word = failure(stage(tmp_path), tmp_path)
    assert (word.fault, word.code) == (fault, code)
    assert "secret" not in word.message


def test_memory_that_really_is_not_there_is_a_matter_of_capacity(tmp_path: Path) -> None:
    student = {"architecture": "mlp", "hidden": [16384] * 16}  # 17 GB of weights, as much for the optimizer
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limit[1]))
    try:
        word = failure(stage(tmp_path, student=student), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert (word.fault, word.code) == ("capacity", "out_of_memory")


def test_an_exported_file_that_differs_fails_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def skewed(model: Any, folder: Path, device: torch.device) -> Any:
        loaded = real(model, folder, device)
        next(loaded.parameters()).data.mul_(1.01)
        return loaded

    real = bundle.export.export_weights
    monkeypatch.setattr(bundle.export, "export_weights", skewed)
    word = failure(stage(tmp_path), tmp_path)
    assert (word.fault, word.code) == ("system", "export_mismatch")
    assert "model.safetensors" in word.message
