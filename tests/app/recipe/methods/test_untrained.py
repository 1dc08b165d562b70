"""Rules of `untrained`."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from app.recipe.plan import plan_training


def job(recipe: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    document = {
        "data": {"train": "file_a"},
        "student": {"architecture": "pretrained", "model": "model_1"},
        "recipe": {"method": {"kind": "untrained"}, **(recipe or {})},
        "export": ["safetensors"],
        **changes,
    }
    return JobSpec.model_validate(document)


def test_a_stored_model_is_evaluated_without_a_step_beside_teachers() -> None:
    assert find_problems(job()) == []
    assert find_problems(job(teacher={"model": "model_2"})) == []
    assert plan_training(job().recipe, 100).total_steps == 0


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"student": {"architecture": "mlp"}}, "student.architecture"),
        ({"resources": {"processes": 2}}, "resources.processes"),
        ({"export": ["safetensors", "onnx"]}, "export"),
        ({"recipe": {"losses": [{"kind": "cross-entropy"}]}}, "recipe.losses"),
        ({"recipe": {"ema_decay": 0.9}}, "recipe.ema_decay"),
        ({"recipe": {"stages": [{"losses": [{"kind": "cross-entropy"}], "epochs": 1}]}}, "recipe.stages"),
        ({"task": "regression"}, "recipe.method.kind"),
    ],
)
def test_what_only_training_needs_is_refused(changes: dict[str, Any], param: str) -> None:
    assert param in [problem.param for problem in find_problems(job(**changes))]
