"""Jobs of self-supervision: valid combinations, and refusals with their reasons."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import ArrayFacts
from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES
from app.recipe.losses.features import FeatureTerm
from app.recipe.methods import METHODS
from app.recipe.students.model import ModelConfig
from app.recipe.students.vectors import dimensions_of
from app.recipe.tasks import TASKS

Document = dict[str, Any]
TASK = "self-supervised"
DATA: Document = {"train": "f", "augment": [{"kind": "resized-crop"}, {"kind": "flip"}, {"kind": "color-jitter"}]}
TAUGHT: Document = {
    "teacher": {"model": "t"},
    "recipe": {"losses": [{"kind": "ntxent"}, {"kind": "similarity-matrix"}]},
}
MODEL: Document = {
    "task": TASK,
    "architecture": {"architecture": "mlp"},
    "input": {"channels": 1, "height": 4, "width": 4},
    "preprocessing": {"mean": [0.5], "std": [0.5]},
    "targets": 24,
    "embedding": {},
}


def job(**changes: Any) -> JobSpec:
    losses = [{"kind": "ntxent"}]
    base = {"task": TASK, "data": DATA, "student": {"architecture": "mlp"}, "recipe": {"losses": losses}}
    return JobSpec.model_validate(base | changes)


def problems(facts: InputFacts = InputFacts(), **changes: Any) -> dict[str, str]:
    found = find_problems(job(**changes), facts)
    return {problem.param: f"{problem.message}; {problem.accepted}" for problem in found}


def archive(**arrays: ArrayFacts) -> InputFacts:
    return InputFacts(train={"x": ArrayFacts((9, 8, 8), "u1"), **arrays})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        TAUGHT,
        {"data": {**DATA, "eval": "g"}},
        {"data": {**DATA, "augment": [{"kind": "grayscale"}, {"kind": "blur"}]}},
        {"data": {**DATA, "format": "image-folder", "image_size": [8, 8]}},
        {"data": {**DATA, "format": "parquet", "input_columns": ["a"]}},
        {"data": {**DATA, "format": "parquet", "input_columns": ["a"], "label_columns": ["b"]}},
        {"embedding": {"dimensions": 16, "normalise": True}},
        {"student": {"architecture": "transformers", "config": {"model_type": "vit"}}},
        {**TAUGHT, "data": {**DATA, "augment_epochs": 3}, "teacher_cache": {"store": "off"}},
        {"teacher": {"model": "t"}, "recipe": {"losses": [{"kind": "embedding-distance"}]}},
        {"recipe": {"losses": [{"kind": "ntxent"}], "pseudo_labels": {}}},
        {"recipe": {"losses": [{"kind": "ntxent"}], "pseudo_labels": {"clusters": 300}}},
        {
            "teacher": {"model": "t"},
            "recipe": {"losses": [{"kind": "ntxent"}], "pseudo_labels": {"source": "teacher"}},
        },
    ],
)
def test_what_goes_together_has_no_problem(changes: Document) -> None:
    assert problems(**changes) == {}


@pytest.mark.parametrize(
    ("changes", "param", "told"),
    [
        ({"data": {"train": "f"}}, "data.augment", "is empty, and self-supervised compares two augmented views"),
        ({"data": {**DATA, "augment": [{"kind": "mixup"}]}}, "data.augment[0].kind", "mixup is not for"),
        ({"data": {**DATA, "unseen_classes": 3}}, "data.unseen_classes", "is for image-embedding"),
        ({"data": {**DATA, "classes": 3}}, "data.classes", "answers with no classes"),
        ({"recipe": {"losses": [{"kind": "normface"}]}}, "recipe.losses[0].kind", "it learns from labels"),
        ({"recipe": {"losses": [{"kind": "contrastive"}]}}, "recipe.losses[0].kind", "contrastive is not for"),
        ({"recipe": {"losses": [{"kind": "ntxent"}], "accumulate": 2}}, "recipe.accumulate", "ntxent compares all"),
        ({"resources": {"processes": 2, "queue": "cpu"}}, "resources.processes", "ntxent compares all samples"),
        ({**TAUGHT, "data": {**DATA, "augment_epochs": 3}}, "data.augment_epochs", "cached for one view"),
        (
            {"data": {**DATA, "format": "parquet", "input_columns": ["a"], "label_columns": ["c", "d"]}},
            "data.label_columns",
            "names 2 columns; one column",
        ),
        (
            {"recipe": {"losses": [{"kind": "ntxent"}], "pseudo_labels": {"source": "teacher"}}},
            "recipe.pseudo_labels.source",
            "is teacher, and there is none; autoencoder, or a teacher",
        ),
        (
            {"recipe": {"losses": [{"kind": "ntxent"}], "pseudo_labels": {"clusters": 100}}},
            "recipe.pseudo_labels.clusters",
            "is 100, and a batch has 128 images, each of another cluster; 128 or more, or null",
        ),
        (
            {**TAUGHT, "recipe": {"losses": [{"kind": "similarity-matrix"}], "pseudo_labels": {}}},
            "recipe.pseudo_labels",
            "no loss compares views",
        ),
        (
            {"teacher": {"model": "t"}, "recipe": {"losses": [{"kind": "ntxent"}], "pseudo_labels": {}}},
            "teacher",
            "no loss learns from it",
        ),
        (
            {"task": "image-classification", "recipe": {"losses": [{"kind": "kd"}], "pseudo_labels": {}}},
            "recipe.pseudo_labels",
            "is for self-supervised",
        ),
        (
            {"task": "image-classification", "recipe": {"losses": [{"kind": "ntxent"}]}},
            "recipe.losses[0].kind",
            "ntxent is not for image-classification",
        ),
    ],
)
def test_what_can_t_work_is_refused_by_its_field(changes: Document, param: str, told: str) -> None:
    found = problems(**changes)
    assert param in found
    assert told in found[param]


def test_an_archive_may_lack_labels_but_has_as_many_as_samples() -> None:
    assert problems(archive()) == {}
    assert problems(archive(y=ArrayFacts((9,), "i8"))) == {}
    assert "9 samples but 8 labels" in problems(archive(y=ArrayFacts((8,), "i8")))["data.train"]
    labelled = problems(archive(), task="image-embedding", recipe={"losses": [{"kind": "normface"}]})
    assert "has no array 'y'" in labelled["data.label_key"]


@pytest.mark.parametrize("kind", ["color-jitter", "grayscale"])
def test_changes_of_colour_are_for_pixels_of_one_or_three_channels(kind: str) -> None:
    of_floats = InputFacts(train={"x": ArrayFacts((9, 8, 8), "f4")})
    found = problems(of_floats, data={**DATA, "augment": [{"kind": kind}]})
    assert f"{kind} does not support these images" in found["data.augment[0].kind"]


def test_losses_are_those_of_vectors_and_of_features_without_labels() -> None:
    fitting = {term.model_fields["kind"].default for term in LOSSES if TASKS[TASK].fits(term)}
    of_features = {term.model_fields["kind"].default for term in LOSSES if issubclass(term, FeatureTerm)}
    assert fitting == {"ntxent", "embedding-distance", "similarity-matrix"} | of_features


@pytest.mark.parametrize("kind", [method.model_fields["kind"].default for method in METHODS])
def test_views_are_compared_by_plain_steps_alone(kind: str) -> None:
    method = next(one for one in METHODS if one.model_fields["kind"].default == kind)
    if not TASKS[TASK].fits(method) or kind == "supervised":
        return
    try:
        found = problems(recipe={"losses": [{"kind": "ntxent"}], "method": {"kind": kind}})
    except ValidationError:
        return  # it needs more settings, which are tested elsewhere
    assert ("recipe.losses[0].kind" in found) is not method.plain_steps


@pytest.mark.parametrize(
    "spec", [{"temperature": 0.0}, {"hidden": 0}, {"dimensions": 0}, {"projection": "conv"}, {"teacher": "t", "x": 1}]
)
def test_settings_out_of_bounds_are_refused(spec: Document) -> None:
    with pytest.raises(ValidationError):
        job(recipe={"losses": [{"kind": "ntxent", **spec}]})


def test_vectors_of_images_are_teachers_and_starts_of_each_other() -> None:
    known = {"t": ModelConfig.model_validate(MODEL)}
    other = {"t": ModelConfig.model_validate(MODEL | {"task": "image-embedding"})}
    assert problems(InputFacts(teachers=other), **TAUGHT) == {}
    distilled: Document = {"teacher": {"model": "t"}, "recipe": {"losses": [{"kind": "embedding-distance"}]}}
    assert problems(InputFacts(teachers=known), task="image-embedding", **distilled) == {}
    start = {"architecture": "pretrained", "model": "t"}
    assert dimensions_of(job(student=start), other) == 24
    classes = {
        "task": "image-classification",
        "data": {"train": "f"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
    }
    assert problems(InputFacts(teachers=known), **classes, student=start) == {}
    taught: Document = {**classes, "teacher": {"model": "t"}, "recipe": {"losses": [{"kind": "kd"}]}}
    assert "was made for self-supervised" in problems(InputFacts(teachers=known), **taught)["teacher.model"]
