"""Any number of classes per sample become 0 and 1 in the order of the job's classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ModelConfig, TextInput
from worker.data import label_sets
from worker.data.formats.columns import Samples, TextSamples
from worker.data.label_notes import label_notes
from worker.data.label_sets import find_label_classes, label_targets
from worker.errors import UserError
from worker.tensors import IGNORED

LISTS: dict[str, Any] = {"format": "csv", "input_columns": ["x"], "label_columns": ["y"]}
ARRAYS: dict[str, Any] = {"format": "npz"}


def stored(labels: Any, names: list[str] | None = None) -> Samples:
    kept = labels if isinstance(labels, list) else np.asarray(labels)
    return Samples(TextSamples(["text"] * len(labels)), kept, names)


def flags(rows: list[list[float]], names: list[str] | None = None) -> Samples:
    return stored(np.array(rows), names)


def described(classes: list[str] | int) -> ModelConfig:
    names = classes if isinstance(classes, list) else None
    given, count = TextInput(length=8, vocabulary=10), len(names) if names else classes
    fields: Any = {"architecture": Mlp(), "input": given, "classes": count, "class_names": names}
    return ModelConfig(task="multi-label-classification", **fields)


def read(
    train: Samples, evaluation: Samples | None = None, teachers: list[list[str] | int] | None = None, **data: Any
) -> tuple[list[list[list[float]]], list[str] | None, dict[str, list[int]], list[str]]:
    """Targets of both files, names of the classes, where the teachers `t0`, `t1`, … have them, and notes."""
    named = {f"t{number}": each for number, each in enumerate(teachers or [])}
    document = {
        "task": "multi-label-classification",
        "data": {"train": "a", **(LISTS if isinstance(train.labels, list) else ARRAYS), **data},
        "teachers": [{"name": name, "model": name} for name in named],
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "binary-kd"}]},
    }
    job = JobSpec.model_validate(document)
    models = {name: described(each) for name, each in named.items()}
    files = {"data.train": train} | ({"data.eval": evaluation} if evaluation else {})
    classes = find_label_classes(job, models, files)
    found = [label_targets(one, classes, job.data, param) for param, one in files.items()]
    notes = [*classes.notes, *(note for _, own in found for note in own)]
    assert all(targets.dtype == torch.float32 for targets, _ in found)
    return [targets.tolist() for targets, _ in found], classes.names, dict(classes.places), notes


def refusal(*args: Any, **more: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        read(*args, **more)
    return caught.value


def test_names_found_in_lists_are_in_the_order_of_the_alphabet() -> None:
    targets, names, _, _ = read(stored([["b", "a"], [], ["c"]]), stored([["c", "a"], []]))
    assert names == ["a", "b", "c"]
    assert targets == [[[1, 1, 0], [0, 0, 0], [0, 0, 1]], [[1, 0, 1], [0, 0, 0]]]


def test_or_of_a_teacher_that_knows_them_all() -> None:
    targets, names, places, notes = read(stored([["A", "b"], []]), teachers=[["c", "b", "a"], ["b", "a", "c"]])
    assert names == ["c", "b", "a"]
    assert targets == [[[0, 1, 1], [0, 0, 0]]]
    assert places == {"t0": [0, 1, 2], "t1": [2, 0, 1]}
    assert any("'A' is 'a'" in note for note in notes)


def test_columns_of_flags_are_matched_by_their_names() -> None:
    train, teacher = flags([[1, 0], [0, 0]], ["rude", "spam"]), ["spam", "other", "rude"]
    targets, names, places, _ = read(train, flags([[1, 0]], ["rude", "spam"]), teachers=[teacher])
    assert (targets, names, places) == ([[[1, 0], [0, 0]], [[1, 0]]], ["rude", "spam"], {"t0": [2, 0]})
    assert read(train, class_order=["spam", "rude"])[:2] == ([[[0, 1], [0, 0]]], ["spam", "rude"])


def test_arrays_have_numbers_that_the_contract_may_name() -> None:
    rows = flags([[1, 0, 1], [0, 0, 0]])
    assert read(rows, flags([[0, 1, 0]]))[:2] == ([[[1, 0, 1], [0, 0, 0]], [[0, 1, 0]]], None)
    assert read(rows, teachers=[3])[2] == {"t0": [0, 1, 2]}
    order, teacher = ["a", "b", "c"], ["c", "a", "b"]
    assert read(rows, teachers=[teacher], class_order=order)[1:3] == (order, {"t0": [1, 2, 0]})
    assert read(rows, teachers=[teacher], class_order="teacher")[1:3] == (teacher, {"t0": [0, 1, 2]})


def test_lists_of_numbers_need_a_list_of_classes() -> None:
    assert read(stored([[2, 0], []]), classes=4)[:2] == ([[[1, 0, 1, 0], [0, 0, 0, 0]]], None)
    assert read(stored([[1], []]), class_order=["a", "b"])[:2] == ([[[0, 1], [0, 0]]], ["a", "b"])
    train, other = stored([[0], [1]], ["joy", "fear"]), stored([[0, 1]], ["fear", "joy"])
    assert read(train, stored([[0]], ["fear", "joy"]))[0][1] == [[0, 1]]
    assert read(train, other)[0][1] == [[1, 1]]
    refused = refusal(stored([[], [2, 0]]))
    assert refused.param == "data.label_columns"
    for part in ("[2, 0] in row 1", "data.classes", "data.class_order", "names of classes"):
        assert part in refused.message


@pytest.mark.parametrize(
    ("train", "evaluation", "told"),
    [
        (
            stored([["a"], ["b"]]),
            stored([["a"], ["b", "z"]]),
            "label 'z' in row 1 of data.eval is no class; accepted: 'a', 'b'",
        ),
        (stored([["a"], ["b"]]), stored([["a", "A"]]), "only data.eval has 'A'"),
        (stored([["a"], ["b"]]), stored([[1]]), "data.eval has numbers for labels, and data.train names: 'a', 'b'"),
        (flags([[0, 1]]), flags([[0, 1, 0]]), "data.eval has labels of 3 classes, and there are 2"),
        (flags([[0, 1]]), flags([[0, 1], [0, 2]]), "array 'y' of data.eval has 2 in row 1, column 1"),
        (flags([[0, 1]]), flags([[np.nan, 1]]), "array 'y' of data.eval has nan in row 0, column 0; accepted: 0 or 1"),
        (flags([[0, 1]]), flags([[0, 0]]), "no sample of data.eval has a label"),
        (stored([["a"], ["b"]]), stored([[], []]), "no sample of data.eval has a label"),
    ],
)
def test_files_that_can_not_meet_are_refused(train: Samples, evaluation: Samples, told: str) -> None:
    refused = refusal(train, evaluation)
    assert told in refused.message
    assert (refused.code, refused.param) == ("invalid_data", "data.eval")


def test_numbers_beyond_the_classes_are_refused_with_their_row() -> None:
    told = refusal(stored([[0], [1, 4]]), classes=3).message
    assert "label 4 in row 1 of data.train is no class; accepted: numbers from 0 to 2" in told


def test_an_order_names_every_column_and_no_other() -> None:
    train = flags([[1, 0]], ["rude", "spam"])
    assert "labels of 2 classes, and there are 3" in refusal(train, class_order=["rude", "spam", "ham"]).message
    assert "only data.train has 'spam'" in refusal(train, class_order=["rude", "ham"]).message


def test_a_single_class_is_refused() -> None:
    assert "at least two classes" in refusal(stored([["a"], []])).message


@pytest.mark.parametrize("teacher", [["a", "z"], 2])
def test_a_teacher_of_other_classes_is_refused_naming_both_lists(teacher: list[str] | int) -> None:
    refused = refusal(stored([["a"], ["b"]]), teachers=[teacher])
    assert (refused.code, refused.param) == ("invalid_teacher", "teachers[0].model")
    assert "classes of data.train: 'a', 'b'" in refused.message


def test_labels_that_no_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_sets, "MAX_BYTES", 15)
    assert "2 samples of 2 labels each take 16 bytes" in refusal(stored([["a"], ["b"]])).message


def notes(train: list[list[int]], evaluation: list[list[int]]) -> list[str]:
    return label_notes(torch.tensor(train).float(), torch.tensor(evaluation).float(), described(["a", "b", "c"]))


def test_warnings_about_labels_name_the_classes() -> None:
    assert notes([[1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 0]], [[1, 1, 1]]) == []
    assert notes([[1, 0, 0], [0, 1, 0], [0, 0, 1]] * 2, [[1, 1, 1]]) == ["no training sample has more than one label"]
    found = notes([[1, 0, 0], [1, 1, 0]], [[0, 0, 1]])
    assert found[0].startswith("only 2 of 3 classes have a training sample; without one: 'c'")
    assert "classes that all training samples have, so that there is nothing to distinguish: 'a'" in found
    assert "classes that are evaluated and have no training sample: 'c'" in found
    assert "classes with a single training sample: 'b'" in found


def test_names_that_may_be_joined_have_a_warning() -> None:
    one = torch.eye(2).repeat(2, 1)
    (told,) = label_notes(one, one, described(["a, b", "c"]))
    assert "no training sample has more than one label, and some may be several: 'a, b' (data.label_separator" in told


@pytest.mark.parametrize("form", ["lists", "array"])
def test_many_classes_become_lists(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_sets, "MANY_LABELS", 3)
    if form == "lists":
        given: Any = stored([["d", "a"], [], ["b", "c", "a", "b"]])
        options = {**LISTS, "class_order": ["a", "b", "c", "d"]}
    else:
        given = flags([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]])
        options = ARRAYS
    document = {
        "task": "multi-label-classification",
        "data": {"train": "f", **options},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "binary-cross-entropy"}]},
    }
    job = JobSpec.model_validate(document)
    classes = find_label_classes(job, {}, {"data.train": given})
    found, _ = label_targets(given, classes, job.data, "data.train")
    assert found.dtype == torch.int32
    assert found.tolist() == [[0, 3, IGNORED], [IGNORED] * 3, [0, 1, 2]]
    notes = label_notes(found, found, described(["a", "b", "c", "d"]))
    monkeypatch.setattr(label_sets, "MANY_LABELS", 9)
    dense, _ = label_targets(given, classes, job.data, "data.train")
    assert notes == label_notes(dense, dense, described(["a", "b", "c", "d"]))
