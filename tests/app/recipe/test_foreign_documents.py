"""JSON files and objects of any form, as users may send them: refused or accepted, never an internal error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.core.field_errors import of_problems, of_validation
from app.recipe.checks import InputFacts, find_problems
from app.recipe.cost import student_cost
from app.recipe.job import JobSpec
from app.recipe.students.hugging_face import (
    DOCUMENTS,
    INDEX,
    MAX_DEPTH,
    MODEL_TYPES,
    TEXT_MODEL_TYPES,
    check_document,
    read_index,
)
from app.recipe.students.model import ModelConfig
from app.recipe.students.rules import architecture_problems
from app.recipe.students.sentence_folder import SWITCHES, embedding_of
from app.recipe.students.shrink import ENCODERS
from app.recipe.teachers.key_map import KeyMap

NAMES = [*DOCUMENTS, INDEX]
KEYS = [
    *(
        "weight_map",
        "model_type",
        "auto_map",
        "type",
        "path",
        "dtype",
        "layers",
        "_attn_implementation",
        "architecture",
    ),
    *("id2label", "pooling_mode", "idx", "strip", "drop", "rename", "from", "to"),
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.sampled_from(["bert", "../x", "model-00001-of-00001.safetensors", "{i}.", "layer{i}.{j}"])
)


def documents(keys: list[str], leaves: int = 12) -> st.SearchStrategy[Any]:
    names = st.sampled_from(keys) | st.text(max_size=4)
    return st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
        max_leaves=leaves,
    )


def refused(call: Callable[[], object]) -> ValueError | None:
    """The error with which a document was refused; no other than `ValueError` may come."""
    try:
        call()
    except ValueError as error:
        return error
    return None


def read(name: str, raw: bytes) -> None:
    """Let the reader of a file have it."""
    error = refused(lambda: read_index(raw) if name == INDEX else check_document(name, raw))
    assert error is None or (str(error) and type(error) is ValueError), "its owner is told in words of ours"


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(NAMES), document=documents(KEYS))
def test_a_file_of_a_model_may_hold_any_json(name: str, document: Any) -> None:
    read(name, json.dumps(document).encode())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_a_model_may_hold_anything(name: str) -> None:
    deep = MAX_DEPTH * 50
    for raw in (
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b"[" * deep + b"]" * deep,
        b'{"layers":' + b"[" * deep + b"]" * deep + b"}",
        b'{"a":' * deep + b"1" + b"}" * deep,
        b"[" * 100_000,
        b"1" * 5000,
        b'{"layers": 1e999}',
        b'{"layers": ' + b"9" * 400 + b"}",
        b'{"\\ud800": {"auto_map": 1}}',
        b'{"a": 1, "a": 2}',
    ):
        read(name, raw)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    modules=st.lists(documents(KEYS), max_size=3),
    pooling=st.dictionaries(st.sampled_from(["pooling_mode", *SWITCHES.values(), "x"]), documents(KEYS), max_size=3),
    general=st.dictionaries(st.sampled_from(["default_prompt_name", "x"]), documents(KEYS), max_size=2),
)
def test_settings_of_an_encoder_may_be_anything(modules: list[Any], pooling: dict[str, Any], general: Any) -> None:
    assert str(refused(lambda: embedding_of(modules, pooling, general)))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(document=documents(["strip", "drop", "rename", "from", "to"]), names=st.lists(st.text(max_size=12), max_size=4))
def test_a_key_map_may_be_anything(document: Any, names: list[str]) -> None:
    error = refused(lambda: KeyMap.model_validate(document))
    if isinstance(error, ValidationError):
        assert of_validation(error, KeyMap)
    else:
        found = KeyMap.model_validate(document)
        assert str(refused(lambda: found.apply([*names, "layer1.2.bn", "module.fc3.weight"])))


SIZES = sorted({name for encoder in ENCODERS.values() for name in encoder[:4]} | {"num_key_value_heads", "head_dim"})


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from([name for name in MODEL_TYPES if name in TEXT_MODEL_TYPES or name in ENCODERS]),
    sizes=st.dictionaries(st.sampled_from(SIZES), documents(KEYS, 3), max_size=4),
    student=st.sampled_from(
        [
            {"architecture": "shrink", "layers": 2},
            {"architecture": "shrink", "layers": [0, 3], "width": 8},
            {"architecture": "shrink", "heads": 2},
            {"architecture": "pretrained", "model": "model_1"},
        ]
    ),
)
def test_a_configuration_may_have_any_value_as_its_sizes(kind: str, sizes: dict[str, Any], student: Any) -> None:
    description = {
        "task": "text-classification" if kind in TEXT_MODEL_TYPES else "causal-lm",
        "architecture": {"architecture": "transformers", "config": {"model_type": kind, **sizes}},
        "input": {"length": 16, "vocabulary": 100},
    } | ({"classes": 3} if kind in TEXT_MODEL_TYPES else {})
    error = refused(lambda: ModelConfig.model_validate(description))
    if isinstance(error, ValidationError):
        assert of_validation(error, ModelConfig)
        return
    config = ModelConfig.model_validate(description)
    student_cost(config.architecture, config.input, config.outputs)
    of_problems(architecture_problems(config.architecture, config.input, "config.architecture"))
    columns = {"input_columns": ["a"]} | ({"label_columns": ["b"]} if kind in TEXT_MODEL_TYPES else {})
    spec = JobSpec.model_validate(
        {
            "task": description["task"],
            "data": {"train": "file_1", "format": "jsonl", **columns},
            "teacher": {"model": "model_1"},
            "student": student,
            "recipe": {"losses": [{"kind": "kd"}]},
        }
    )
    of_problems(find_problems(spec, InputFacts(train=None, eval=None, teachers={"model_1": config})))
