"""Matching of class lists: by name, by number where there are no names, and refused where neither is possible."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.classes import ClassList, ClassMismatch, match_classes
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.model import ModelConfig

Names = list[str] | None


def lists(ours: Names | int, theirs: Names | int) -> tuple[ClassList, ClassList]:
    made = (ClassList(whose, each) if isinstance(each, int) else ClassList(whose, len(each or ()), each)
            for whose, each in (("data.train", ours), ("teacher.model", theirs)))  # fmt: skip
    first, second = made
    return first, second


@pytest.mark.parametrize(
    ("ours", "theirs", "places"),
    [
        (["e", "n", "c"], ["c", "e", "n"], [1, 2, 0]),
        (["a", "b"], ["a", "b"], [0, 1]),
        (["a", "a"], ["a", "a"], [0, 1]),  # the same list, whatever is in it
        (["b"], ["a", "b", "c"], [1]),
        (["negative", "Positive "], ["POSITIVE", "NEGATIVE"], [1, 0]),
        (["cat", "Cat"], ["Cat", "cat"], [1, 0]),
        (3, 3, [0, 1, 2]),
        (12, [str(number) for number in sorted(range(12), key=str)], [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]),
        (["10", "2"], 11, [10, 2]),
        (["02", "1"], ["1", "2"], [1, 0]),
    ],
)
def test_classes_are_found_by_name_or_value(ours: Names | int, theirs: Names | int, places: list[int]) -> None:
    assert match_classes(*lists(ours, theirs)).places == places


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (["zero", "one"], ["nought", "one"], ["only data.train has 'zero'", "only teacher.model has 'nought'"]),
        (["zero", "one"], 2, ["data.train has names, teacher.model has numbers", "the numbers 0 to 1"]),
        (2, ["zero", "one"], ["teacher.model has names, data.train has numbers", "'zero', 'one'"]),
        (["cat", "CAT"], ["Cat", "dog"], ["only data.train has 'cat', 'CAT'"]),
        (["cat"], ["Cat", "CAT"], ["more than one class of teacher.model may be 'cat'"]),
        (["crane"], ["crane", "dog", "crane"], ["more than one class of teacher.model may be 'crane'"]),
        (3, 4, ["data.train has 3 classes, teacher.model has 4"]),
        (["3"], 3, ["only data.train has '3'"]),
        (["1", "01"], ["1", "2"], ["only data.train has '01'"]),
    ],
)
def test_an_ambiguous_match_is_refused_naming_both_lists(
    ours: Names | int, theirs: Names | int, told: list[str]
) -> None:
    with pytest.raises(ClassMismatch) as caught:
        match_classes(*lists(ours, theirs))
    for part in (*told, "classes of data.train: ", "of teacher.model: "):
        assert part in str(caught.value)


def test_other_spellings_are_noted_and_long_lists_cut() -> None:
    assert match_classes(*lists(["a", "b"], ["b", "a"])).note is None
    note = match_classes(*lists(["Yes", "no"], ["no", "yes"])).note
    assert note is not None
    assert "'Yes' is 'yes'" in note
    assert "no'" not in note
    many = [f"c{number}" for number in range(1000)]
    with pytest.raises(ClassMismatch, match=r"and 980 more") as caught:
        match_classes(*lists(many, ["x", "y"]))
    assert len(str(caught.value)) < 1000


# ---- jobs at the door


def problems(models: dict[str, Any], data: dict[str, Any] | None = None, **fields: Any) -> list[Problem]:
    """Problems of a job on an archive, which holds numbers, with the teacher `m` unless `fields` override it."""
    document: dict[str, Any] = {
        "data": {"train": "file_a", **(data or {})},
        "teacher": {"model": "m"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "kd"}]},
    }
    base = {
        "architecture": {"architecture": "mlp"},
        "input": {"channels": 1, "height": 8, "width": 8},
        "preprocessing": {"mean": [0.0], "std": [1.0]},
        "classes": 3,
    }
    known = {name: ModelConfig.model_validate(base | config) for name, config in models.items()}
    return find_problems(JobSpec.model_validate(document | fields), InputFacts(teachers=known))


ABC, NAMED = ["a", "b", "c"], {"class_names": ["c", "a", "b"]}


def test_numbers_for_a_teacher_with_names_are_refused_unless_the_job_names_them() -> None:
    (problem,) = problems({"m": NAMED})
    assert problem.param == "teacher.model"
    assert "'c', 'a', 'b'" in problem.message
    assert "data.class_order or teacher.class_order" in (problem.accepted or "")
    assert problems({"m": NAMED}, {"class_order": ABC}) == []
    assert problems({"m": NAMED}, {"class_order": "teacher"}) == []
    assert problems({"m": {}}) == []
    assert problems({"m": {}}, {"class_order": ABC}) == []
    assert problems({"m": {"class_names": ["2", "0", "1"]}}) == []


def test_a_teacher_can_be_named_in_the_words_of_the_data() -> None:
    nought = {"class_names": ["nought", "one", "two"]}
    given = {"class_order": ["zero", "one", "two"]}
    assert [problem.param for problem in problems({"m": nought}, given)] == ["teacher.model"]
    told = {"model": "m", "class_order": ["zero", "one", "two"]}
    assert problems({"m": nought}, given, teacher=told) == []


def test_every_teacher_is_held_against_the_classes() -> None:
    two = [{"name": "one", "model": "m"}, {"name": "two", "model": "n"}]
    models = {"m": NAMED, "n": {"class_names": ["a", "b", "d"]}}
    (problem,) = problems(models, {"class_order": "teacher"}, teacher=None, teachers=two)
    assert problem.param == "teachers[1].model"
    assert "only data.class_order has 'c', only teachers[1].model has 'd'" in problem.message


def test_a_teacher_with_more_classes_teaches_those_that_are_named() -> None:
    wider = {"classes": 4, "class_names": ["d", "c", "b", "a"]}
    assert problems({"m": wider}, {"class_order": ABC}) == []
    assert [problem.param for problem in problems({"m": {"classes": 4}}, {"class_order": ABC})] == ["data.class_order"]
    assert [problem.param for problem in problems({"m": {"classes": 4}}, {"classes": 3})] == ["data.classes"]


@pytest.mark.parametrize(
    ("data", "fields", "param"),
    [
        ({"class_order": ABC, "classes": 4}, {}, "data.class_order"),
        ({}, {"teacher": {"model": "m", "class_order": ["a", "b"]}}, "teacher.class_order"),
        (
            {"class_order": "teacher"},
            {"teacher": None, "recipe": {"losses": [{"kind": "cross-entropy"}]}},
            "data.class_order",
        ),
        (
            {},
            {"student": {"architecture": "pretrained", "model": "m", "class_order": ["a", "b"]}},
            "student.class_order",
        ),
    ],
)
def test_orders_must_fit(data: dict[str, Any], fields: dict[str, Any], param: str) -> None:
    assert param in [problem.param for problem in problems({"m": {}}, data, **fields)]


def test_numbers_have_no_classes_to_name() -> None:
    found = problems({"m": {}}, {"class_order": ABC}, task="regression")
    assert "data.class_order" in [problem.param for problem in found]


def test_a_class_has_one_place() -> None:
    with pytest.raises(ValidationError, match=r"names the class 'a' twice"):
        problems({}, {"class_order": ["a", "b", "a"]})


# ---- what teachers must come to


def test_a_requirement_names_a_metric_of_the_task() -> None:
    assert problems({"m": {}}, evaluation={"require_teacher": {"accuracy": 0.5}}) == []
    (problem,) = problems({"m": {}}, evaluation={"require_teacher": {"rmse": 0.5}})
    assert problem.param == "evaluation.require_teacher.rmse"
    assert problem.accepted == "one of accuracy, nll, ece, adaptive_ece, brier"
    alone = {"teacher": None, "recipe": {"losses": [{"kind": "cross-entropy"}]}}
    found = problems({}, evaluation={"require_teacher": {"accuracy": 0.5}}, **alone)
    assert [problem.param for problem in found] == ["evaluation.require_teacher"]


@pytest.mark.parametrize(
    ("theirs", "refused"),
    [
        (["width", "height"], False),
        (None, False),
        (["w", "h"], False),  # none of the names is the same: only the order can tell
        (["height", "width"], True),
        (["height", "depth"], True),
    ],
)
def test_numbers_that_were_learned_from_other_columns_are_refused(theirs: Names, refused: bool) -> None:
    job = JobSpec.model_validate(
        {
            "task": "regression",
            "data": {"train": "file_a", "format": "csv", "input_columns": ["x"], "label_columns": ["width", "height"]},
            "teacher": {"model": "model_t"},
            "student": {"architecture": "mlp"},
            "recipe": {"losses": [{"kind": "mse", "target": "teacher"}]},
        }
    )
    stored = {
        "architecture": {"architecture": "mlp"},
        "input": {"columns": 1},
        "preprocessing": {"mean": [0], "std": [1]},
    }
    teacher = ModelConfig.model_validate({**stored, "task": "regression", "targets": 2, "target_names": theirs})
    problems = [
        each for each in find_problems(job, InputFacts(teachers={"model_t": teacher})) if "columns" in each.message
    ]
    assert [each.param for each in problems] == (["teacher.model"] if refused else [])


def test_a_model_of_numbers_has_a_name_for_each_or_none() -> None:
    with pytest.raises(ValidationError, match="one name per target"):
        ModelConfig.model_validate(
            {
                "task": "regression",
                "architecture": {"architecture": "mlp"},
                "input": {"columns": 1},
                "preprocessing": {"mean": [0], "std": [1]},
                "targets": 2,
                "target_names": ["a"],
            }
        )
