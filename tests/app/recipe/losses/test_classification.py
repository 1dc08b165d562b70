"""What losses with the labels alone refuse at the door, by field."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec


def job(*losses: dict[str, Any], classes: int = 10, recipe: dict[str, Any] | None = None, **more: Any) -> JobSpec:
    document = {
        "data": {"train": "file_a", "classes": classes},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": list(losses), **(recipe or {})},
    }
    return JobSpec.model_validate({**document, **more})


def problems(*losses: dict[str, Any], **more: Any) -> dict[str, str]:
    """Message and what would be accepted, by field."""
    found = find_problems(job(*losses, **more))
    return {problem.param: f"{problem.message}; accepted: {problem.accepted}" for problem in found}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("z-loss", {"a": 0.0}),
        ("z-loss", {"b": float("nan")}),
        ("comp-sum", {"tau": -0.1}),
        ("comp-sum", {"tau": 2.1}),
        ("comp-sum", {"rho": 0.0}),
        ("ldr", {"kl_weight": 0.0}),
        ("ldr", {"margin": -1.0}),
        ("ldr", {"scores": "probabilities"}),
        ("l2-svm", {"c": 0.0}),
        ("l2-svm", {"margin": 0.0}),
        ("l2-svm", {"regularisation": -1.0}),
        ("l2-svm", {"hinge": "cubic"}),
    ],
)
def test_settings_out_of_range_are_refused_by_field(kind: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        job({"kind": kind, **settings})
    (error,) = raised.value.errors()
    assert error["loc"][-1] == next(iter(settings))


def test_z_loss_is_for_three_classes_or_more() -> None:
    found = problems({"kind": "cross-entropy"}, {"kind": "z-loss"}, classes=2)
    assert found == {
        "recipe.losses[1].kind": "z-loss is not for 2 classes; accepted: 3 classes or more, or another loss"
    }
    assert problems({"kind": "z-loss"}, classes=3) == {}
    assert problems({"kind": "comp-sum"}, {"kind": "ldr"}, classes=2) == {}


SVM = {"architecture": "mlp", "head": {"kind": "svm"}}


def test_l2_svm_regularises_a_head_of_its_kind() -> None:
    assert problems({"kind": "l2-svm"}, student=SVM) == {}
    assert problems({"kind": "l2-svm", "regularisation": 0.0}) == {}
    found = problems({"kind": "cross-entropy"}, {"kind": "l2-svm"})
    assert list(found) == ["recipe.losses[1].regularisation"]
    assert "accepted: 0, or student.head: {kind: svm}" in found["recipe.losses[1].regularisation"]


def test_a_head_of_margins_is_trained_by_l2_svm() -> None:
    assert list(problems({"kind": "cross-entropy"}, student=SVM)) == ["student.head.kind"]
    stages = {"stages": [{"epochs": 1, "losses": [{"kind": "l2-svm"}]}]}
    assert list(problems({"kind": "cross-entropy"}, student=SVM, recipe=stages)) == ["student.head.kind"]


def test_methods_that_train_more_than_the_student_refuse_what_reads_its_weights() -> None:
    mutual = {"method": {"kind": "mutual"}}
    assert list(problems({"kind": "l2-svm"}, student=SVM, recipe=mutual)) == ["recipe.losses[0].kind"]
    assert problems({"kind": "l2-svm", "regularisation": 0.0}, student=SVM, recipe=mutual) == {}
