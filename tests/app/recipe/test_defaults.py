"""Defaults of a recipe without optimizer, schedule or epochs."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.defaults import resolve
from app.recipe.job import JobSpec
from app.recipe.students.model import ModelConfig

VIT = {"architecture": "vit", "patch_size": 2, "width": 32, "depth": 2, "heads": 4}
LARGE_VIT = {"architecture": "transformers", "config": {"model_type": "vit"}}
RESNET = {"architecture": "cifar-resnet", "depth": 20}
PRETRAINED = {"architecture": "pretrained", "model": "model_start"}
LLAMA = {"architecture": "transformers", "config": {"model_type": "llama"}}
BERT = {"architecture": "transformers", "config": {"model_type": "bert"}}


def job(student: dict[str, Any], recipe: dict[str, Any] | None = None, **fields: Any) -> JobSpec:
    losses = {"losses": [{"kind": "cross-entropy"}]}
    document = {"data": {"train": "file_data"}, "student": student, "recipe": losses | (recipe or {})}
    return JobSpec.model_validate(document | fields)


def stored(architecture: dict[str, Any]) -> ModelConfig:
    image = {"channels": 1, "height": 8, "width": 8}
    scaling = {"mean": [0.5], "std": [0.25]}
    document = {"architecture": architecture, "input": image, "preprocessing": scaling, "classes": 10}
    return ModelConfig.model_validate(document)


@pytest.mark.parametrize(
    ("student", "task", "start", "lr", "schedule", "epochs"),
    [
        (RESNET, "image-classification", None, 1e-3, "constant", 10),
        ({"architecture": "mlp"}, "regression", None, 1e-3, "constant", 10),
        (VIT, "image-classification", None, 1e-3, "constant", 10),
        ({"architecture": "timm", "model": "vit_tiny_patch16_224"}, "image-classification", None, 3e-3, "cosine", 10),
        ({"architecture": "timm", "model": "resnet18"}, "image-classification", None, 1e-3, "constant", 10),
        (LARGE_VIT, "image-classification", None, 3e-3, "cosine", 10),
        (BERT, "text-classification", None, 5e-4, "cosine", 10),
        (LLAMA, "causal-lm", None, 6e-4, "cosine", 10),
        (PRETRAINED, "image-classification", RESNET, 1e-4, "cosine", 10),
        (PRETRAINED, "image-classification", VIT, 5e-5, "linear", 3),
        (PRETRAINED, "text-classification", None, 5e-5, "linear", 3),
        (PRETRAINED, "embedding", None, 2e-5, "linear", 3),
        (PRETRAINED, "causal-lm", None, 2e-5, "cosine", 3),
    ],
)
def test_a_student_gets_what_its_family_and_its_start_want(
    student: dict[str, Any], task: str, start: dict[str, Any] | None, lr: float, schedule: str, epochs: int
) -> None:
    models = {"model_start": stored(start)} if start else {}
    resolved, chosen = resolve(job(student, task=task), models)
    recipe = resolved.recipe
    assert (recipe.optimizer.kind, recipe.optimizer.lr) == ("adamw", lr)
    assert (recipe.schedule.kind, recipe.epochs) == (schedule, epochs)
    assert [each.param for each in chosen] == ["recipe.optimizer", "recipe.schedule", "recipe.epochs"]
    assert all(each.reason for each in chosen)
    if schedule != "constant":
        assert recipe.schedule.warmup(1000) in (30, 100)


def test_a_shrunken_student_gets_what_its_teachers_network_wants() -> None:
    shrunk = {"architecture": "shrink", "layers": 1}
    teacher = {"teacher": {"model": "model_t"}}
    of_vit, _ = resolve(job(shrunk, **teacher), {"model_t": stored(VIT)})
    of_resnet, _ = resolve(job(shrunk, **teacher), {"model_t": stored(RESNET)})
    afresh, _ = resolve(job(shrunk | {"init": "fresh"}, **teacher), {"model_t": stored(VIT)})
    assert (of_vit.recipe.optimizer.lr, of_vit.recipe.schedule.kind, of_vit.recipe.epochs) == (5e-5, "linear", 10)
    assert (of_resnet.recipe.optimizer.lr, of_resnet.recipe.schedule.kind) == (1e-3, "cosine")
    assert (afresh.recipe.optimizer.lr, afresh.recipe.optimizer.weight_decay) == (1e-3, 0.01)


def test_what_the_document_gives_is_kept() -> None:
    given = {"optimizer": {"kind": "sgd", "lr": 0.1}, "schedule": {"kind": "constant"}, "epochs": 7}
    asked = job(PRETRAINED, given, task="causal-lm")
    resolved, chosen = resolve(asked, {})
    assert (resolved, chosen) == (asked, [])


def test_an_optimizer_without_a_rate_gets_that_of_the_student_alone() -> None:
    adamp, chosen = resolve(job(PRETRAINED, {"optimizer": {"kind": "adamp", "weight_decay": 0.5}}), {})
    assert (adamp.recipe.optimizer.lr, adamp.recipe.optimizer.weight_decay) == (5e-5, 0.5)
    assert [each.param for each in chosen] == ["recipe.optimizer.lr", "recipe.schedule", "recipe.epochs"]
    swan, _ = resolve(job(VIT, {"optimizer": {"kind": "swan"}}), {})
    assert swan.recipe.optimizer.lr == 1e-3


def test_milestones_keep_the_epochs_that_they_are_counted_in() -> None:
    schedule = {"kind": "multi-step", "milestones": [4, 8]}
    resolved, _ = resolve(job(PRETRAINED, {"schedule": schedule}), {})
    assert resolved.recipe.epochs == 10


@pytest.mark.parametrize("student", [RESNET, VIT, PRETRAINED])
def test_a_resolved_job_resolves_to_itself(student: dict[str, Any]) -> None:
    resolved, _ = resolve(job(student), {})
    again = JobSpec.model_validate(resolved.model_dump(mode="json"))
    assert resolve(again, {}) == (again, [])
    assert again == resolved
