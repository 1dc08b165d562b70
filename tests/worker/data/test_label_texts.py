"""Texts of labels, and labels that can't be told apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.recipe.students.architectures import DualEncoder, Mlp, Transformers
from worker.data.label_texts import equal_labels, label_texts
from worker.errors import UserError

ENCODER = Transformers(config={"model_type": "bert"})


def dual(**changes: Any) -> DualEncoder:
    return DualEncoder(encoder=ENCODER, **changes)


def test_the_text_of_a_label_is_given_or_its_name() -> None:
    assert label_texts(dual(label_texts={"b": "a text"}), ["a", "b"]) == ["a", "a text"]
    assert label_texts(Mlp(), None) == []


@pytest.mark.parametrize(("names", "param"), [(None, "data.class_order"), (["a", "c"], "student.label_texts")], ids=str)
def test_labels_without_names_and_texts_without_labels_are_refused(names: list[str] | None, param: str) -> None:
    with pytest.raises(UserError) as caught:
        label_texts(dual(label_texts={"b": "a text"}), names)
    assert (caught.value.code, caught.value.param) == ("invalid_job", param)


def test_labels_with_equal_tokens_are_named() -> None:
    tokens = torch.tensor([[2, 5], [2, 6], [2, 5], [2, 5]])
    [warning] = equal_labels(tokens, ["red", "blue", "Red", "RED"])
    assert warning.endswith("equal logits: 'Red' as 'red', 'RED' as 'red'")
    assert not list(equal_labels(tokens[:2], ["red", "blue"]))
    [warning] = equal_labels(torch.zeros(9, 2), list("abcdefghi"))
    assert warning.endswith("'f' as 'a' and 3 more")
