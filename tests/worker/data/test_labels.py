"""Labels of files whose classes have names, numbers or another order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ModelConfig, TextInput
from worker.data.formats.columns import Samples, TextSamples
from worker.data.label_notes import class_notes, number_notes
from worker.data.labels import class_targets, find_classes
from worker.errors import UserError

Labels = list[str] | list[int]


def stored(labels: Labels, names: list[str] | None = None) -> Samples:
    kept: Any = labels if isinstance(labels[0], str) else np.array(labels, np.int64)
    return Samples(TextSamples(["text"] * len(labels)), kept, names)


def read(
    train: Samples, evaluation: Samples | None = None, teachers: list[list[str] | int] | None = None, **data: Any
) -> tuple[list[list[int]], list[str] | None, dict[str, list[int]], list[str]]:
    """Targets of both files, names of the classes, where the teachers `t0`, `t1`, … have them, and notes."""
    named = {f"t{number}": each for number, each in enumerate(teachers or [])}
    document = {
        "task": "text-classification",
        "data": {"format": "csv", "train": "a", "input_columns": ["x"], "label_columns": ["y"], **data},
        "teachers": [{"name": name, "model": name} for name in named],
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "kd"}]},
    }
    job = JobSpec.model_validate(document)
    models = {name: described(each) for name, each in named.items()}
    files = {"data.train": train} | ({"data.eval": evaluation} if evaluation else {})
    classes = find_classes(job, models, files)
    found = [class_targets(one, classes, job.data, param) for param, one in files.items()]
    notes = [*classes.notes, *(note for _, own in found for note in own)]
    return [targets.tolist() for targets, _ in found], classes.names, dict(classes.places), notes


def described(classes: list[str] | int) -> ModelConfig:
    names = classes if isinstance(classes, list) else None
    count = len(names) if names else classes
    given = TextInput(length=8, vocabulary=10)
    fields: Any = {"architecture": Mlp(), "input": given, "classes": count, "class_names": names}
    return ModelConfig(task="text-classification", **fields)


def test_a_file_that_lists_its_classes_decides_their_order_and_teachers_are_aligned() -> None:
    train = stored([0, 1, 2], ["entailment", "neutral", "contradiction"])
    teachers: list[list[str] | int] = [
        ["contradiction", "entailment", "neutral"],
        ["Neutral", "other", "contradiction", "entailment"],
    ]
    targets, names, places, notes = read(train, teachers=teachers)
    assert targets == [[0, 1, 2]]
    assert names == ["entailment", "neutral", "contradiction"]
    assert places == {"t0": [1, 2, 0], "t1": [3, 0, 2]}
    assert len(notes) == 1
    assert "'neutral' is 'Neutral'" in notes[0]


def test_names_found_in_labels_have_the_order_of_a_teacher_that_all_others_can_follow() -> None:
    first, second = ["c", "b", "a"], ["a", "b", "c", "d"]
    assert read(stored(["a", "b"]), teachers=[first])[:3] == ([[2, 1]], first, {"t0": [0, 1, 2]})
    assert read(stored(["a", "b"]), teachers=[first, second])[2] == {"t0": [0, 1, 2], "t1": [2, 1, 0]}
    narrower = read(stored(["a", "b"]), teachers=[second, first])
    assert narrower[1:3] == (["a", "b"], {"t0": [0, 1], "t1": [2, 1]})
    assert read(stored(["a", "b"]), teachers=[second], classes=2)[1:3] == (["a", "b"], {"t0": [0, 1]})


def test_an_order_in_the_contract_names_numbers_and_chooses_classes() -> None:
    order = ["zero", "one"]
    assert read(stored([1, 0]), teachers=[["one", "zero", "two"]], class_order=order)[:3] == (
        [[1, 0]],
        order,
        {"t0": [1, 0]},
    )
    assert read(stored(["one", "zero"]), teachers=[2], class_order=order)[:3] == ([[1, 0]], order, {"t0": [0, 1]})
    assert read(stored([0, 1], ["one", "zero"]), class_order=order)[0] == [[1, 0]]
    teacher = ["one", "zero"]
    assert read(stored([1, 0]), teachers=[teacher], class_order="teacher")[:2] == ([[1, 0]], teacher)


@pytest.mark.parametrize(
    ("train", "teachers"),
    [
        (stored([0, 1]), [["zero", "one"]]),
        (stored(["zero", "one"]), [2]),
        (stored(["zero", "one"]), [["nought", "one"]]),
        (stored([0, 1]), [2, 3]),
        (stored(["a", "b"]), [["a", "b"], ["a", "c"]]),
    ],
)
def test_a_teacher_of_other_classes_is_refused_naming_both_lists(
    train: Samples, teachers: list[list[str] | int]
) -> None:
    with pytest.raises(UserError) as caught:
        read(train, teachers=teachers)
    assert caught.value.code == "invalid_teacher"
    assert caught.value.param == f"teachers[{len(teachers) - 1}].model"
    for part in ("classes of data.train: ", f"of teachers[{len(teachers) - 1}].model: ", "data.class_order"):
        assert part in caught.value.message


def test_numbers_are_found_by_value_where_names_are_numbers() -> None:
    ordered = sorted(map(str, range(11)), key=str)
    places = read(stored(list(range(11))), teachers=[ordered])[2]["t0"]
    assert [ordered[place] for place in places] == [str(number) for number in range(11)]
    assert read(stored(["0", "1", "10"]), teachers=[11])[2] == {"t0": [0, 1, 10]}


def test_files_with_other_orders_meet_by_name() -> None:
    train = stored([0, 1, 2], ["a", "b", "c"])
    assert read(train, stored([0, 1], ["c", "a"]))[0][1] == [2, 0]
    assert read(train, stored([0, 3], ["c", "x", "y", "b"]))[0][1] == [2, 1]  # what has no sample needs no class
    assert read(train, stored(["b", "C"]))[0][1] == [1, 2]
    assert read(stored(["b", "a"]), stored([1, 0], ["a", "b"]))[0][1] == [1, 0]
    assert read(stored(["10", "9"]), stored([9, 10]))[0] == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("train", "evaluation", "told"),
    [
        (
            stored([0, 1], ["a", "b"]),
            stored([0, 1]),
            "data.eval has numbers for labels, and data.train names: 'a'",
        ),
        (stored([0, 1]), stored([0, 1], ["a", "b"]), "data.eval has names, data.train has numbers"),
        (stored([0, 1]), stored(["a", "b"]), "label 'a' at index 0 of data.eval is no class"),
        (stored(["a", "b"]), stored([1, 0], ["a", "z"]), "only data.eval has 'z'"),
        (stored([0, 1], ["a", "b"]), stored([0, 5], ["a", "b"]), "label 5 at index 1 of data.eval is outside 0..1"),
        (stored(["a", "b"]), stored(["a", "A", "b"]), "data.eval"),
    ],
)
def test_files_that_can_not_meet_are_refused(train: Samples, evaluation: Samples, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read(train, evaluation)
    assert told in caught.value.message
    assert caught.value.param == "data.eval"


def notes(train: list[int], evaluation: list[int], names: list[str] | int) -> list[str]:
    return class_notes(torch.tensor(train), torch.tensor(evaluation), described(names))


def test_sound_labels_are_no_news() -> None:
    assert notes([0, 1, 0, 1], [0, 1], 2) == []
    assert notes([0, 1, 0, 1], [0, 1], ["a", "b"]) == []


def test_warnings_about_labels_name_the_classes() -> None:
    from_one = notes([1, 2, 1, 2], [1, 2], 3)
    assert "only 2 of 3 classes have a training sample; without one: '0'" in from_one
    assert any("labels begin at 1" in note and "class 0 has no sample" in note for note in from_one)
    assert "classes that are evaluated and have no training sample: 'c'" in notes([0, 0, 1, 1], [2], ["a", "b", "c"])
    assert "classes with a single training sample: 'b'" in notes([0, 0, 1], [0], ["a", "b"])
    assert any("all training samples are of class 'b'" in note for note in notes([1, 1], [0], ["a", "b"]))
    twins, mixed = notes([0, 0, 1, 1, 2, 2], [0], ["7", "007", "x"])
    assert "read as names" in mixed
    assert "'7', '007'" in twins
    many = notes([0, 0], [0], [f"c{number}" for number in range(500)])
    assert "and 479 more" in many[0]


def test_constant_targets_have_a_warning() -> None:
    train = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    (note,) = number_notes(train)
    assert note.endswith(": 1")
