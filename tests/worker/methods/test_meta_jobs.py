"""Whole jobs of a teacher that learns from the student."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from app.recipe.students.architectures import Mlp
from tests.worker.methods.meta_scene import LOSSES_OF_JOBS, META, PATIENT, RECIPE, Scene
from tests.worker.training.builders import (
    Played,
    document,
    play,
    require_same_bits,
    require_same_bits_after_death,
    stage,
)
from worker.data.batches import Batch, whole_split
from worker.data.load import keep_back
from worker.errors import UserError
from worker.methods.meta import MetaStep
from worker.protocol import CachePlace, Failed, Finished, Log, Metrics
from worker.students.measure import network_cost
from worker.tasks import task_for
from worker.tasks.base import HeldOut
from worker.tasks.classification import Classification
from worker.teachers import read_teacher_config


def ran(folder: Path, **changes: Any) -> Played:
    played = play(stage(folder, teacher=True, **changes), folder)
    assert isinstance(played.word, Finished), played.word
    return played


def report(folder: Path) -> Any:
    return json.loads((folder / "bundle" / "report.json").read_text())


@pytest.mark.parametrize(
    "recipe",
    [
        {"ema_decay": 0.8, "optimizer": {"kind": "adamp", "lr": 0.01}, "schedule": {"kind": "cosine"}},
        {"method": {**META, "order": "finite-difference", "teacher_schedule": {"kind": "cosine"}}},
        {"losses": [*LOSSES_OF_JOBS, PATIENT]},
    ],
    ids=["second", "difference", "activations"],
)
def test_a_job_that_is_stopped_resumes_to_the_same_bits(tmp_path: Path, recipe: dict[str, Any]) -> None:
    student = {"architecture": "mlp", "hidden": [12]}  # as wide as the teacher
    require_same_bits(partial(stage, teacher=True, student=student, recipe={**RECIPE, **recipe}), tmp_path)
    straight, halting = (report(tmp_path / name) for name in ("straight", "halting"))
    assert straight["teacher"]["nll"] == halting["teacher"]["nll"]
    assert straight["student"]["kl"] == halting["student"]["kl"]


def test_a_death_between_two_steps_repeats_those_since_the_checkpoint(tmp_path: Path) -> None:
    recipe = {**RECIPE, "checkpoint": {"every_steps": 2}}
    require_same_bits_after_death(partial(stage, teacher=True, recipe=recipe), MetaStep, tmp_path)


def test_everything_is_measured_counted_and_reported(tmp_path: Path) -> None:
    played = ran(tmp_path, recipe={**RECIPE, "batch_size": 10, "method": {**META, "quiz_fraction": 0.25}})
    values = {name: value for metrics in played.of(Metrics) for name, value in metrics.values.items()}
    for metric in ("loss", "loss/kd", "loss/pilot", "loss/quiz", "grad_norm", "teacher/grad_norm"):
        assert f"train/{metric}" in values
    found = report(tmp_path)
    train, student, teacher = found["train"], found["student"]["flops"], found["teacher"]["flops"]
    assert found["samples"] == {"train": 30, "eval": 10}
    assert train["meta"] == {"quiz_samples": 10, "order": "second", "teacher": "teacher"}
    assert "10 of 40 training samples are kept back for the quiz of the teacher" in messages(played)
    assert train["steps"] == 6
    assert train["student_flops"] == (60 * (3 + 5) + 60 * 3) * student
    assert train["teacher_flops"] == 60 * (1 + 3) * teacher
    assert values["train/flops/teacher"] == train["teacher_flops"]
    assert train["teacher_cache"] == {}


def test_the_teacher_is_reported_as_it_was_and_as_it_is(tmp_path: Path) -> None:
    method = {**META, "teacher_optimizer": {"kind": "sgd", "lr": 5.0}}
    assignment = stage(tmp_path, teacher=True, recipe={**RECIPE, "epochs": 8, "method": method})
    cache = CachePlace(folder=str(tmp_path / "cache"))
    played = play(assignment.model_copy(update={"teacher_cache": cache}), tmp_path)
    assert isinstance(played.word, Finished), played.word
    found = report(tmp_path)
    assert "learners" not in found
    assert found["teacher"]["nll"] != found["teacher"]["before"]["nll"]
    assert found["epochs"]["last"]["kl"] == pytest.approx(found["student"]["kl"], rel=1e-4)
    evaluated = [each.values["eval/kl"] for each in played.of(Metrics) if "eval/kl" in each.values]
    assert evaluated[-1] == pytest.approx(found["student"]["kl"], rel=1e-4)
    assert "the outputs of 'teacher' are not cached" in " ".join(messages(played))
    assert any(each.values.get("train/teacher/lr") == 5.0 for each in played.of(Metrics))


def test_evaluations_compare_with_the_teacher_of_that_moment() -> None:
    scene = Scene()
    scene.state.student.float(), scene.teacher.float()
    job = JobSpec.model_validate(document(teacher=True, recipe=RECIPE))
    held = whole_split({"images": torch.randn(5, 1, 4, 4)}, torch.zeros(5, dtype=torch.int64))
    evaluator = task_for(job.task).evaluator(job, HeldOut(held), {}, {"teacher": lambda: scene.teacher}, {})

    def measured() -> float:
        return evaluator.evaluate(scene.state.student).evaluation.metrics["kl"]

    def expected() -> float:
        p, q = (model(held.inputs["images"]).log_softmax(-1) for model in (scene.teacher, scene.state.student))
        return float(F.kl_div(q, p, log_target=True, reduction="batchmean").detach())

    assert measured() == pytest.approx(expected(), rel=1e-4)
    with torch.no_grad():
        for weight in scene.teacher.parameters():
            weight.mul_(2.0)
    assert measured() == pytest.approx(expected(), rel=1e-4)
    evaluator = evaluator.beside({"teacher": scene.teacher})
    assert measured() == pytest.approx(expected(), rel=1e-4)
    assert evaluator.teacher_outputs is evaluator.teacher_outputs  # nothing changes any more


def messages(played: Played) -> list[str]:
    return [each.message for each in played.of(Log)]


def test_a_class_with_a_single_sample_is_warned_of_by_name(tmp_path: Path) -> None:
    assignment = stage(tmp_path, teacher=True, recipe=RECIPE)
    with_rare_class(tmp_path / "data.npz")
    played = play(assignment, tmp_path)
    assert isinstance(played.word, Finished), played.word
    assert any("single sample" in each and "'3'" in each and "kept back" in each for each in messages(played))


def with_rare_class(path: Path) -> None:
    arrays = dict(np.load(path))
    labels = np.arange(len(arrays["y"])) % 3
    labels[0] = 3
    np.savez(path, x=arrays["x"], y=labels)


def test_the_quiz_is_none_of_what_is_trained_on_or_evaluated(tmp_path: Path) -> None:
    ran(tmp_path, recipe=RECIPE)
    ours, theirs = (Split(tmp_path, recipe) for recipe in (RECIPE, {"losses": LOSSES_OF_JOBS}))
    assert (len(ours.train), len(ours.quiz), len(ours.held)) == (36, 4, 10)
    assert ours.held == theirs.held
    assert not ours.train & ours.quiz
    assert ours.train | ours.quiz == theirs.train


class Split:
    """The samples of a job, each as bytes."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        job = JobSpec.model_validate(document(teacher=True, recipe=recipe))
        paths = {"data": folder / "data.npz", "teacher": folder / "teacher"}
        described = {"teacher": read_teacher_config(folder / "teacher", "teacher")}
        data = task_for(job.task).load(job, paths, described, 3)
        self.train, self.held = as_bytes(data.train), as_bytes(data.eval)
        self.quiz = as_bytes(data.kept_back) if data.kept_back else set()


def as_bytes(batch: Batch) -> set[bytes]:
    return {sample.numpy().tobytes() for sample in batch.inputs["images"]}


def test_a_single_training_sample_leaves_none_for_the_quiz() -> None:
    job = JobSpec.model_validate(document(teacher=True, recipe=RECIPE))
    task = task_for(job.task)
    assert isinstance(task, Classification)
    single = whole_split({"images": torch.zeros(1, 1, 4, 4)}, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(UserError, match="two or more") as refused:
        keep_back(task, single, job, 3)
    assert refused.value.param == "data.train"


def test_what_becomes_nan_in_the_pilot_ends_the_job_with_its_step(tmp_path: Path) -> None:
    played = play(stage(tmp_path, teacher=True, recipe={**RECIPE, "method": {**META, "pilot_lr": 1e38}}), tmp_path)
    word = played.word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.step) == ("user", "nan_loss", 1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"recipe": {**RECIPE, "accumulate": 2}}, "recipe.accumulate"),
        ({"recipe": {**RECIPE, "compile": True}}, "recipe.compile"),
        (
            {"recipe": {**RECIPE, "precision": "bf16", "method": {"kind": "meta", "order": "finite-difference"}}},
            "recipe.method.order",
        ),
        ({"recipe": {**RECIPE, "stages": [{"losses": [{"kind": "kd"}], "epochs": 1}]}}, "recipe.stages"),
        ({"recipe": {**RECIPE, "losses": [{"kind": "cross-entropy"}]}}, "recipe.losses"),
        ({"recipe": {**RECIPE, "losses": [{"kind": "kd"}, {"kind": "tvd"}]}}, "recipe.losses[1].kind"),
        (
            {"recipe": {**RECIPE, "losses": [{"kind": "hint", "pairs": [{"teacher": "2", "student": "2"}]}]}},
            "recipe.losses[0].kind",
        ),
        ({"recipe": RECIPE, "task": "causal-lm"}, "recipe.method.kind"),
        (
            {"recipe": RECIPE, "resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}},
            "resources.sharding",
        ),
        ({"recipe": RECIPE, "teachers": [{"model": "a", "name": "a"}, {"model": "b", "name": "b"}]}, "teachers"),
        ({"recipe": RECIPE, "teachers": [{"model": "a", "precision": "bf16"}]}, "teachers[0].precision"),
        ({"recipe": RECIPE, "teacher_cache": {"store": "top-k", "k": 2}}, "teacher_cache"),
        (
            {"recipe": {**RECIPE, "method": {"kind": "meta", "teacher_optimizer": {"kind": "normalized-gd"}}}},
            "recipe.method.teacher_optimizer.kind",
        ),
        (
            {
                "recipe": {
                    **RECIPE,
                    "method": {
                        "kind": "meta",
                        "teacher_optimizer": {"kind": "sgd", "lr": 1, "groups": [{"match": "a", "lr": 0}]},
                    },
                }
            },
            "recipe.method.teacher_optimizer.groups",
        ),
    ],
)
def test_fields_that_do_not_fit_it_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    job = JobSpec.model_validate(document(**{"teacher": "teachers" not in changes, **changes}))
    assert field in [problem.param for problem in find_problems(job)]


@pytest.mark.parametrize("order", ["second", "finite-difference"])
def test_operations_are_about_those_that_torch_counts(order: str) -> None:
    scene, other = Scene(Mlp(hidden=[64] * 8), order=order), Scene(Mlp(hidden=[64] * 8))
    student, teacher = (network_cost(model.config).flops for model in (scene.state.student, scene.teacher))
    batch, quiz = len(scene.stage.batches.at(0)), len(scene.quiz.at(0))
    with FlopCounterMode(display=False) as plain:
        other.take_plainly()
    with FlopCounterMode(display=False) as counter:
        scene.take()
    expected = (5 * batch + 3 * quiz) * student + 3 * batch * teacher
    assert counter.get_total_flops() - plain.get_total_flops() == pytest.approx(expected, rel=0.03)
