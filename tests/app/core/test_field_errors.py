"""Every kind of mistake in a job gets its path as the client wrote it, and what would be accepted there."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.core.errors import FieldError
from app.core.field_errors import of_validation
from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES
from app.recipe.optimizers import OPTIMIZERS, SCHEDULES
from app.recipe.students.architectures import STUDENTS
from app.recipe.students.model import ModelConfig

JOB: dict[str, Any] = {
    "data": {"train": "file_1"},
    "student": {"architecture": "mlp"},
    "recipe": {"losses": [{"kind": "cross-entropy"}]},
}


def errors_of(document: object) -> list[FieldError]:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(document)
    return of_validation(caught.value, JobSpec)


def recipe(**fields: Any) -> dict[str, Any]:
    return {"recipe": {**JOB["recipe"], **fields}}


def losses(*terms: object) -> dict[str, Any]:
    return recipe(losses=list(terms))


CE, SGD = {"kind": "cross-entropy"}, {"kind": "sgd", "lr": 0.1}
CASES: dict[str, tuple[dict[str, Any], str, str, str | None]] = {
    # what is wrong: the fields, the path, part of the message, part of what is accepted
    "unknown key": ({"datta": 1}, "datta", "not a known key; did you mean 'data'?", "one of card, data, embedding"),
    "unknown key, nothing near": ({"zzz": 1}, "zzz", "is not a known key", "student, student_image_size, task"),
    "unknown key of a loss": (
        losses(CE, {"kind": "nkd", "gama": 1.0}),
        "recipe.losses[1].gama",
        "'gamma'",
        "gamma, kind",
    ),
    "unknown kind": (
        losses({"kind": "nkdd"}),
        "recipe.losses[0].kind",
        "did you mean 'nkd'",
        "mi-alpha, mse, mw, nkd, normface",
    ),
    "no kind": (
        losses({"gamma": 1.0}),
        "recipe.losses[0].kind",
        "is required",
        "one of activation-boundary, akl, aldr, anyloss, assistive",
    ),
    "kind of a wrong type": (losses({"kind": 3}), "recipe.losses[0].kind", "'3' is not known", "kd"),
    "not an object": (losses(4), "recipe.losses[0]", "should be an object", "an object with kind one of"),
    "not a list": (recipe(losses="kd"), "recipe.losses", "valid list", "a list of at most 16 items, each an object"),
    "empty list": (
        losses({"kind": "hint", "pairs": []}),
        "recipe.losses[0].pairs",
        "at least 1 item",
        "a list of 1 to 32 items",
    ),
    "too long a list": (losses(*[CE] * 17), "recipe.losses", "at most 16 items", "a list of at most 16 items"),
    "below a bound": (
        losses({"kind": "kd", "temperature": 0}),
        "recipe.losses[0].temperature",
        "than 0",
        "> 0.0, <= 1000",
    ),
    "above a bound": ({"priority": 101}, "priority", "less than or equal to 100", "an integer >= 0, <= 100"),
    "on an open bound": (recipe(ema_decay=1.0), "recipe.ema_decay", "less than 1", "a number > 0.0, < 1.0, or null"),
    "not finite": (recipe(clip_norm=float("inf")), "recipe.clip_norm", "finite", "a number > 0.0, or null"),
    "not a number": (losses({"kind": "kd", "weight": float("nan")}), "recipe.losses[0].weight", "", "a number > 0.0"),
    "text for an integer": (recipe(epochs="3"), "recipe.epochs", "valid integer", "an integer >= 1, <= 100000"),
    "boolean for an integer": (recipe(epochs=True), "recipe.epochs", "valid integer", "an integer >= 1"),
    "integer for a boolean": (
        recipe(optimizer={**SGD, "nesterov": 1}),
        "recipe.optimizer.nesterov",
        "",
        "true or false",
    ),
    "null where it is not allowed": ({"recipe": None}, "recipe", "an object", "an object with the keys losses"),
    "missing": ({"data": {}}, "data.train", "is required", "a string of 1 to 512 characters"),
    "missing in a tagged union": (recipe(optimizer={"kind": "sgd"}), "recipe.optimizer.lr", "is required", "> 0.0"),
    "literal": (recipe(precision="fp16"), "recipe.precision", "'fp32' or 'bf16'", "one of fp32, bf16"),
    "task": (
        {"task": "poetry"},
        "task",
        "'keypoints'",
        "one of image-classification, text-classification, multi-label-classification",
    ),
    "literal of numbers": (
        {"student": {"architecture": "cifar-resnet", "depth": 9}},
        "student.depth",
        "8, 14",
        "one of 8, 14, 20, 32, 44, 56, 110",
    ),
    "item of a list": ({"export": ["safetensors", "onx"]}, "export[1]", "'onnx'", "one of safetensors, onnx"),
    "item of a tuple": (
        recipe(optimizer={"kind": "adamw", "betas": [0.9, 1.0]}),
        "recipe.optimizer.betas[1]",
        "less than 1",
        "a number >= 0.0, < 1.0",
    ),
    "too long a tuple": (
        recipe(optimizer={"kind": "adamw", "betas": [0.9, 0.9, 0.9]}),
        "recipe.optimizer.betas",
        "at most 2 items",
        "a list of 2 items",
    ),
    "our own check of a list": ({"export": ["onnx"]}, "export", "must include safetensors", "safetensors, onnx"),
    "our own check of an object": (
        recipe(schedule={"kind": "multi-step", "milestones": [2.0, 1.0]}),
        "recipe.schedule",
        "milestones must ascend",
        None,
    ),
    "key of a mapping": ({"labels": {"!": "x"}}, "labels.!", "match pattern", "a string matching ^[A-Za-z0-9]"),
    "value of a mapping": ({"labels": {"team": 3}}, "labels.team", "valid string", "at most 512 characters"),
    "too large a mapping": ({"labels": {str(i): "" for i in range(17)}}, "labels", "at most 16", "at most 16 keys"),
    "empty text": ({"name": ""}, "name", "at least 1 character", "a string of 1 to 128 characters"),
    "control character": ({"name": "a\x00b"}, "name", "match pattern", "a string of 1 to 128 characters matching"),
    "optional object of a wrong type": (
        {"teacher": 3},
        "teacher",
        "an object",
        "an object with the keys model",
    ),
    "inside an optional object": ({"teacher": {"modell": "m", "model": "m"}}, "teacher.modell", "'model'", "model"),
    "integer too large": ({"seed": 2**63}, "seed", "less than or equal", "<= 9223372036854775807, or null"),
}


@pytest.mark.parametrize(("fields", "param", "message", "accepted"), CASES.values(), ids=CASES)
def test_one_mistake(fields: dict[str, Any], param: str, message: str, accepted: str | None) -> None:
    [error] = errors_of({**JOB, **fields})
    assert error.param == param
    assert message in error.message
    assert error.accepted is None if accepted is None else accepted in (error.accepted or "")


def test_all_mistakes_are_told_at_once() -> None:
    wrong = {"data": {"trian": "file_1"}, "student": {"architecture": "vgg"}, "priority": -1, **recipe(epochs=0)}
    found = [error.param for error in errors_of({**JOB, **wrong})]
    assert found == ["data.train", "data.trian", "student.architecture", "recipe.epochs", "priority"]


def test_a_document_that_is_no_object_is_refused_as_a_whole() -> None:
    [error] = errors_of([1, 2])
    assert error.param == ""
    assert "an object with the keys task, name" in (error.accepted or "")


@pytest.mark.parametrize("option", [*LOSSES, *OPTIMIZERS, *SCHEDULES, *STUDENTS], ids=lambda option: option.__name__)
def test_every_field_of_every_option_says_what_it_accepts(option: Any) -> None:
    fields = [name for name in option.model_fields if name not in ("kind", "architecture")]
    with pytest.raises(ValidationError) as caught:
        option.model_validate({name: object() for name in fields})
    found = {error.param: error.accepted for error in of_validation(caught.value, option)}
    assert set(fields) <= set(found)
    assert all(found[name] for name in fields)


@pytest.mark.parametrize("given", [-3, "image", [1], None])
def test_an_input_that_is_no_object_is_told_so(given: object) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate({"input": given, "architecture": {"architecture": "mlp"}, "classes": 3})
    [error] = [error for error in of_validation(caught.value, ModelConfig) if error.param == "input"]
    assert error.message == "input should be an object"
