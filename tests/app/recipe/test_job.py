"""The contract itself: its defaults, its refusals, and the documentation that every option must have."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.recipe.base import Option
from app.recipe.job import JobSpec, Recipe
from app.recipe.losses import LOSSES
from app.recipe.optimizers import OPTIMIZERS, SCHEDULES, AdamW
from app.recipe.students.architectures import STUDENTS

MINIMAL: dict[str, Any] = {
    "data": {"train": "file_a"},
    "student": {"architecture": "mlp"},
    "recipe": {"losses": [{"kind": "cross-entropy"}]},
}
OPTIONS: tuple[type[Option], ...] = (*LOSSES, *OPTIMIZERS, *SCHEDULES, *STUDENTS)


def set_at(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of the document with one value replaced; `path` is dotted."""
    head, _, rest = path.partition(".")
    inner = set_at(document.get(head, {}), rest, value) if rest else value
    return {**document, head: inner}


def test_a_minimal_job_is_filled_with_defaults_and_survives_a_round_trip() -> None:
    spec = JobSpec.model_validate(MINIMAL)
    document = spec.model_dump(mode="json")
    assert document["recipe"]["optimizer"]["kind"] == "adamw"
    assert JobSpec.model_validate(document) == spec


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("task", "speech"),
        ("unknown", 1),
        ("recipe.epochs", 0),
        ("recipe.epochs", True),
        ("recipe.epochs", "3"),
        ("recipe.epochs", 3.0),
        ("recipe.losses", [{"kind": "dkdd"}]),
        ("recipe.losses", [{"kind": "kd", "temperature": 0.0}]),
        ("recipe.losses", [{"kind": "kd", "weight": float("nan")}]),
        ("recipe.losses", [{"kind": "kd", "weight": float("inf")}]),
        ("recipe.optimizer", {"kind": "sgd"}),
        ("recipe.optimizer", {"kind": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": True}),
        ("recipe.optimizer", {"kind": "adamp", "betas": [0.9]}),
        ("recipe.optimizer", {"kind": "adamp", "betas": [0.9, 1.0]}),
        ("recipe.schedule", {"kind": "multi-step", "milestones": [3.0, 2.0]}),
        ("recipe.precision", "fp16"),
        ("student", {"architecture": "resnet50"}),
        ("student", {"architecture": "cifar-resnet", "depth": 21}),
        ("export", ["onnx"]),
        ("export", ["safetensors", "safetensors"]),
        ("export", ["safetensors", "gguf"]),
        ("export", ["safetensors", "onnx-int8"]),
        ("evaluation.keep", "first"),
        ("evaluation.nme_points", [3, 3]),
        ("evaluation.nme_points", [1, 2, 3]),
        ("evaluation.nme_points", [-1, 2]),
        ("seed", -1),
        ("seed", 2**63),
        ("priority", 101),
        ("labels", {"bad key": "x"}),
        ("labels", {f"k{n}": "x" for n in range(17)}),
        ("name", "two\nlines"),
        ("resources", {"gpus": 1}),
    ],
)
def test_what_is_not_in_the_contract_is_refused(path: str, value: object) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate(set_at(MINIMAL, path, value))


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.__name__)
def test_every_option_has_a_description_and_a_schema(option: type[Option]) -> None:
    assert option.__doc__
    assert option.model_json_schema()["additionalProperties"] is False


def test_every_field_without_an_obvious_name_is_described() -> None:
    plain = {"kind", "architecture", "betas", "eps", "momentum", "nesterov", "weight_decay", "dampening", "lr", "gamma"}
    nested = {"data", "teacher", "student", "recipe", "evaluation", "resources", "optimizer", "schedule", "checkpoint"}
    undescribed = [
        f"{model.__name__}.{name}"
        for model in _models(JobSpec)
        for name, field in model.model_fields.items()
        if not field.description and name not in plain | nested | {"task", "name"}
    ]
    assert undescribed == []


def _models(root: type[BaseModel]) -> set[type[BaseModel]]:
    found = {root}
    for field in root.model_fields.values():
        for part in _parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel) and part not in found:
                found |= _models(part)
    return found


def _parts(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation, *(inner for argument in arguments for inner in _parts(argument))]


@pytest.mark.parametrize(
    ("field", "text", "number"),
    [
        ("lr", "5e-4", 5e-4),
        ("lr", "1E3", 1000.0),
        ("lr", "1.5e2", 150.0),
        ("epochs", "1_000", 1000),
        ("epochs", "1e2", 100),
    ],
)
def test_numbers_that_readers_of_yaml_1_1_take_for_text_are_numbers(field: str, text: str, number: float) -> None:
    given = {"optimizer": {"kind": "adamw", "lr": text}} if field == "lr" else {field: text}
    recipe = Recipe.model_validate({"losses": [{"kind": "cross-entropy", "weight": "5e-1"}], **given})
    assert (recipe.optimizer.lr if field == "lr" else recipe.epochs) == number
    assert recipe.losses[0].weight == 0.5


@pytest.mark.parametrize("text", ["0.5", "12", "fast", "1e", "nan", "1__0", "0x10", ""])
def test_other_text_is_no_number(text: str) -> None:
    with pytest.raises(ValidationError, match="valid number"):
        AdamW.model_validate({"kind": "adamw", "lr": text})


def test_numbers_in_lists_are_read_and_text_stays_text() -> None:
    job = JobSpec.model_validate(
        {
            "name": "5e-4",
            "labels": {"rate": "1e-3"},
            "data": {"train": "1e3"},
            "student": {"architecture": "mlp", "hidden": ["1_6"]},
            "recipe": {
                "losses": [{"kind": "cross-entropy"}],
                "schedule": {"kind": "multi-step", "milestones": ["1e0", 2.5]},
            },
        }
    )
    assert (job.name, job.labels, job.data.train) == ("5e-4", {"rate": "1e-3"}, "1e3")
    assert (job.student.hidden, job.recipe.schedule.milestones) == ([16], [1.0, 2.5])
