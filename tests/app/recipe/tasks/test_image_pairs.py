"""Jobs on pairs of images: valid combinations, and refusals with their reasons."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.checks import InputFacts, find_problems
from app.recipe.cost import student_cost
from app.recipe.data.facts import ArrayFacts
from app.recipe.data.headers import sample_facts
from app.recipe.data.sources import ImageData
from app.recipe.job import JobSpec
from app.recipe.plan import NetworkCosts, model_memory, plan_training, training_flops
from app.recipe.students.architectures import Mlp
from app.recipe.students.inputs import ImageInput
from app.recipe.tasks import TASKS

Document = dict[str, Any]
TASK = "image-embedding"
SCORED: Document = {"losses": [{"kind": "pair-score"}]}
CLASSES: Document = {"losses": [{"kind": "normface"}]}
ARCHIVE: Document = {"train": "f", "second_key": "z"}
TABLE: Document = {"train": "f", "format": "parquet", "input_columns": ["a", "b"], "label_columns": ["same"]}
SINGLE: Document = {**TABLE, "input_columns": ["a"], "label_columns": ["name"]}


def job(**changes: Any) -> JobSpec:
    base = {"task": TASK, "data": ARCHIVE, "student": {"architecture": "mlp"}, "recipe": SCORED}
    return JobSpec.model_validate(base | changes)


def problems(facts: InputFacts = InputFacts(), **changes: Any) -> dict[str, str]:
    found = find_problems(job(**changes), facts)
    return {problem.param: f"{problem.message}; {problem.accepted}" for problem in found}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": TABLE},
        {"data": {**ARCHIVE, "eval": "g"}},
        {"data": {**ARCHIVE, "augment": [{"kind": "crop"}, {"kind": "flip"}]}},
        {"data": {"train": "f", "eval": "g", "eval_second_key": "z"}, "recipe": CLASSES},
        {"data": {**SINGLE, "eval": "g", "eval_input_columns": ["a", "b"]}, "recipe": CLASSES},
        {"data": {**TABLE, "eval": "g", "eval_input_columns": ["a"], "eval_label_columns": ["name"]}},
        {"teacher": {"model": "t"}, "recipe": {"losses": [{"kind": "embedding-distance"}, {"kind": "pair-score"}]}},
        {"recipe": {**SCORED, "accumulate": 4}, "resources": {"processes": 2, "queue": "cpu"}},
    ],
)
def test_it_is_valid(changes: Document) -> None:
    assert problems(**changes) == {}


@pytest.mark.parametrize(
    ("changes", "param", "told"),
    [
        ({"recipe": CLASSES}, "recipe.losses[0].kind", "samples are pairs, without classes; pair-score, or single"),
        (
            {"data": {"train": "f"}},
            "recipe.losses[0].kind",
            "samples are single images; pairs of images, or a loss of classes such as normface",
        ),
        ({"data": {**ARCHIVE, "unseen_classes": 4}}, "data.unseen_classes", "samples are pairs, without classes; null"),
        ({"data": {"train": "f", "eval_second_key": "z"}}, "data.eval_second_key", "there is no data.eval; null"),
        ({"data": {**TABLE, "eval_input_columns": ["a"]}}, "data.eval", "is missing, and columns of it are named"),
        (
            {"data": {**TABLE, "eval": "g", "eval_input_columns": ["a", "b", "c"]}},
            "data.eval_input_columns",
            "names 3 columns; one column, or two of pairs",
        ),
        (
            {"data": {**TABLE, "eval": "g", "eval_label_columns": ["a", "b"]}},
            "data.eval_label_columns",
            "names 2 columns; one column",
        ),
        ({"data": {**TABLE, "label_columns": []}}, "data.label_columns", "is missing"),
        (
            {"recipe": {**SCORED, "batch_size": 8, "samples_per_class": 2}},
            "recipe.samples_per_class",
            "samples are pairs, without classes; null",
        ),
        (
            {"task": "image-classification", "recipe": {"losses": [{"kind": "cross-entropy"}]}},
            "data.second_key",
            f"is for {TASK}",
        ),
        (
            {"task": "self-supervised", "data": {"train": "f", "augment": [{"kind": "flip"}]}},
            "recipe.losses[0].kind",
            "pair-score is not for self-supervised: it learns from labels",
        ),
    ],
)
def test_what_can_t_work_is_refused_by_its_field(changes: Document, param: str, told: str) -> None:
    assert told in problems(**changes)[param]


def arrays(**changes: tuple[tuple[int, ...], str]) -> dict[str, ArrayFacts]:
    shapes = {"x": ((10, 8, 8), "u1"), "z": ((10, 8, 8), "u1"), "y": ((10,), "i8"), **changes}
    return {name: ArrayFacts(*shape) for name, shape in shapes.items()}


def test_an_archive_of_pairs_takes_twice_the_memory_and_has_its_facts_before_it_is_read() -> None:
    facts = sample_facts(ImageData.model_validate(ARCHIVE), TASKS[TASK], arrays())
    single = sample_facts(ImageData(train="f"), TASKS[TASK], arrays())
    assert not isinstance(facts, list)
    assert not isinstance(single, list)
    assert (facts.count, facts.bytes, single.bytes) == (10, 128, 64)
    assert facts.input == single.input


@pytest.mark.parametrize(
    ("data", "facts", "param", "told"),
    [
        (ARCHIVE, arrays(z=((10, 8, 9), "u1")), "data.second_key", "shape (10, 8, 9) and dtype u1; shape (10, 8, 8)"),
        ({**ARCHIVE, "second_key": "w"}, arrays(), "data.second_key", "has no array 'w'; one of x, y, z"),
    ],
)
def test_second_images_that_do_not_fit_are_refused_before_they_are_read(
    data: Document, facts: dict[str, ArrayFacts], param: str, told: str
) -> None:
    assert told in problems(InputFacts(train=facts), data=data)[param]


def test_second_images_of_the_evaluation_file_have_their_own_field() -> None:
    data = {"train": "f", "eval": "g", "eval_second_key": "w"}
    found = problems(InputFacts(train=arrays(), eval=arrays()), data=data, recipe=CLASSES)
    assert "data.eval has no array 'w'" in found["data.eval_second_key"]


def test_a_batch_of_pairs_takes_the_activations_of_twice_the_images() -> None:
    single, cost = (
        job(data={"train": "f"}, recipe=CLASSES),
        student_cost(Mlp(), ImageInput(channels=1, height=8, width=8), 8),
    )
    assert cost is not None
    (weights, of_pairs), (same, of_images) = (model_memory(each, NetworkCosts(cost), 1000) for each in (job(), single))
    assert (weights, of_pairs) == (same, 2 * of_images)
    plan, rows = plan_training(single.recipe, 100), TASKS[TASK].rows_per_sample(job().data)
    once = training_flops(plan, single.recipe, NetworkCosts(cost))
    assert training_flops(plan, single.recipe, NetworkCosts(cost), rows) == 2 * once
