"""Jobs of embeddings of images: valid combinations, and refusals with their reasons."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, find_problems
from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES, NormFace
from app.recipe.losses.features import FeatureTerm
from app.recipe.students.model import ModelConfig
from app.recipe.students.vectors import dimensions_of
from app.recipe.tasks import TASKS

Document = dict[str, Any]
TASK = "image-embedding"
TAUGHT: Document = {"teacher": {"model": "t"}, "recipe": {"losses": [{"kind": "embedding-distance"}]}}
MODEL: Document = {
    "task": TASK,
    "architecture": {"architecture": "mlp"},
    "input": {"channels": 1, "height": 4, "width": 4},
    "preprocessing": {"mean": [0.5], "std": [0.5]},
    "targets": 24,
    "embedding": {"normalise": True},
}
BY_CLASS: Document = {"losses": [{"kind": "normface"}], "batch_size": 32, "samples_per_class": 4}
"""A recipe whose batches have eight classes."""
OF_VECTORS = {"pair-score", "embedding-distance", "similarity-matrix", "normface", "unpg", "cfcd", "cfcd-local"}


def job(**changes: Any) -> JobSpec:
    losses = [{"kind": "normface"}]
    base = {"task": TASK, "data": {"train": "f"}, "student": {"architecture": "mlp"}, "recipe": {"losses": losses}}
    return JobSpec.model_validate(base | changes)


def problems(facts: InputFacts = InputFacts(), **changes: Any) -> dict[str, str]:
    found = find_problems(job(**changes), facts)
    return {problem.param: f"{problem.message}; {problem.accepted}" for problem in found}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": {"train": "f", "unseen_classes": 5}},
        {"data": {"train": "f", "eval": "g"}},
        {"data": {"train": "f", "format": "image-folder", "image_size": [8, 8]}},
        {"data": {"train": "f", "augment": [{"kind": "crop"}, {"kind": "flip"}, {"kind": "rand-augment"}]}},
        {"embedding": {"dimensions": 16, "normalise": True}},
        {"embedding": {"pooling": "mean"}},
        {"student": {"architecture": "transformers", "config": {"model_type": "vit"}}},
        {"recipe": {"losses": [{"kind": "normface"}], "batch_size": 32, "samples_per_class": 4}},
        {"recipe": BY_CLASS | {"hard_negatives": {}}},
        {"recipe": BY_CLASS | {"hard_negatives": {"pool": 64, "every": 10, "neighbours": 7}}},
        TAUGHT,
        {**TAUGHT, "recipe": {"losses": [{"kind": "normface", "margin": "arcface"}, {"kind": "rkd"}]}},
    ],
)
def test_what_goes_together_has_no_problem(changes: Document) -> None:
    assert problems(**changes) == {}


@pytest.mark.parametrize(
    ("changes", "param", "told"),
    [
        ({"data": {"train": "f", "eval": "g", "unseen_classes": 2}}, "data.unseen_classes", "null, or no data.eval"),
        ({"data": {"train": "f", "classes": 4}}, "data.classes", "answers with no classes"),
        ({"data": {"train": "f", "class_order": ["a", "b"]}}, "data.class_order", "answers with no classes"),
        ({"data": {"train": "f", "augment": [{"kind": "mixup"}]}}, "data.augment[0].kind", "mixup is not for"),
        (
            {"recipe": {"losses": [{"kind": "normface"}], "batch_size": 32, "samples_per_class": 5}},
            "recipe.samples_per_class",
            "is 5, and recipe.batch_size is 32; a divisor of 32, for two classes or more",
        ),
        (
            {"recipe": {"losses": [{"kind": "normface"}], "batch_size": 32, "samples_per_class": 32}},
            "recipe.samples_per_class",
            "a divisor of 32, for two classes or more",
        ),
        (
            {"task": "image-classification", "recipe": {"losses": [{"kind": "kd"}], "samples_per_class": 4}},
            "recipe.samples_per_class",
            "is for image-embedding",
        ),
        (
            {"recipe": {"losses": [{"kind": "normface"}], "hard_negatives": {}}},
            "recipe.hard_negatives",
            "without recipe.samples_per_class batches are not drawn by class; null, or recipe.samples_per_class",
        ),
        (
            {"recipe": BY_CLASS | {"hard_negatives": {"neighbours": 8}}},
            "recipe.hard_negatives.neighbours",
            "is 8, and a batch has 8 classes, one of them the anchor; at most 7, or null",
        ),
        (
            {"task": "image-classification", "recipe": {"losses": [{"kind": "kd"}], "hard_negatives": {}}},
            "recipe.hard_negatives",
            "is for image-embedding",
        ),
        (
            {
                "recipe": BY_CLASS | {"hard_negatives": {}},
                "resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"},
            },
            "recipe.hard_negatives",
            "no process has the whole student; null, or resources.sharding: none",
        ),
        ({"embedding": {"pooling": "cls"}}, "embedding.pooling", "has no tokens to pool; mean"),
        ({"task": "image-classification", "data": {"train": "f", "unseen_classes": 2}}, "data.unseen_classes", TASK),
        (
            {"task": "image-classification", "embedding": {"dimensions": 2}},
            "embedding",
            "none, or task: embedding, image-embedding, self-supervised",
        ),
        ({**TAUGHT, "teacher_cache": {"store": "top-k", "k": 2}}, "teacher_cache.store", "are no distributions"),
        (
            {"recipe": {"losses": [{"kind": "normface"}], "method": {"kind": "mutual"}}},
            "recipe.method.kind",
            "mutual, which is not for image-embedding",
        ),
        (
            {"data": {"train": "f", "format": "parquet", "input_columns": ["a", "b", "d"], "label_columns": ["c"]}},
            "data.input_columns",
            "names 3 columns; one column, or two of pairs",
        ),
        (
            {"evaluation": {"diagnostics": [{"kind": "calibration"}]}},
            "evaluation.diagnostics[0].kind",
            "calibration",
        ),
    ],
)
def test_what_can_t_work_is_refused_by_its_field(changes: Document, param: str, told: str) -> None:
    found = problems(**changes)
    assert param in found
    assert told in found[param]


def test_dimensions_are_refused_for_texts() -> None:
    data = {"train": "f", "format": "csv", "input_columns": ["a", "b"]}
    student = {"architecture": "transformers", "config": {"model_type": "bert"}}
    losses = {"losses": [{"kind": "contrastive"}]}
    found = problems(task="embedding", data=data, student=student, recipe=losses, embedding={"dimensions": 8})
    assert list(found) == ["embedding.dimensions"]


def test_losses_are_those_of_vectors_and_of_features_without_pairs_of_texts() -> None:
    fitting = {term.model_fields["kind"].default for term in LOSSES if TASKS[TASK].fits(term)}
    of_features = {term.model_fields["kind"].default for term in LOSSES if issubclass(term, FeatureTerm)}
    assert fitting == OF_VECTORS | of_features
    assert problems(recipe={"losses": [{"kind": "contrastive"}]})["recipe.losses[0].kind"].startswith("contrastive is")
    assert not TASKS["embedding"].fits(NormFace)
    assert "views of an image" in problems(recipe={"losses": [{"kind": "ntxent"}]})["recipe.losses[0].kind"]


@pytest.mark.parametrize(
    "spec",
    [
        {"margin_size": 0.2},
        {"margin": "cosface", "margin_size": 1.5},
        {"scale": 0.0},
        {"eps": 0.0},
        {"margin": "sphereface"},
    ],
)
def test_settings_of_normface_out_of_bounds_are_refused(spec: Document) -> None:
    with pytest.raises(ValidationError):
        job(recipe={"losses": [{"kind": "normface", **spec}]})


@pytest.mark.parametrize(("margin", "size"), [("none", 0.0), ("cosface", 0.35), ("arcface", 0.5)])
def test_a_margin_has_its_papers_size(margin: Any, size: float) -> None:
    assert NormFace(margin=margin).used_margin == size


def test_dimensions_follow_from_the_model_that_a_student_starts_from() -> None:
    known = {"t": ModelConfig.model_validate(MODEL)}
    start = {"student": {"architecture": "pretrained", "model": "t"}}
    assert dimensions_of(job(**start), known) == 24
    assert dimensions_of(job(**start, embedding={"dimensions": 5}), known) == 5
    assert dimensions_of(job(**TAUGHT), known) == 128
    other = MODEL | {"task": "regression", "embedding": None}
    assert dimensions_of(job(**start), {"t": ModelConfig.model_validate(other)}) == 128


@pytest.mark.parametrize("changes", [{"embedding": None}, {"targets": None}, {"embedding": {"dimensions": 24}}])
def test_a_model_has_its_vector_and_its_width_once(changes: Document) -> None:
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(MODEL | changes)


def test_a_teacher_of_another_task_is_refused() -> None:
    other = MODEL | {"task": "image-classification", "embedding": None, "targets": None, "classes": 3}
    facts = InputFacts(teachers={"t": ModelConfig.model_validate(other)})
    assert (
        problems(facts, **TAUGHT)["teacher.model"] == "was made for image-classification; a model for image-embedding"
    )
