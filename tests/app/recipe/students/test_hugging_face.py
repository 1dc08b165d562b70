"""Accepted and refused configurations in the Hugging Face layout."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.recipe.students.hugging_face import (
    MAX_CONFIG_BYTES,
    MAX_DEPTH,
    MAX_LAYERS,
    parse_object,
    refuse_code,
    require_model_type,
)

BERT: dict[str, Any] = {"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 2, "id2label": {"0": "no"}}


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"dtype": "float32", "_attn_implementation": "sdpa", "attn_implementation": None},
        {"auto_map": None, "use_timm_backbone": False},
        {"num_hidden_layers": MAX_LAYERS, "depths": [2, 2, 18, 2]},
        nested(MAX_DEPTH),
    ],
)
def test_plain_settings_pass_unchanged(more: dict[str, Any]) -> None:
    config = {**BERT, **more}
    assert require_model_type(config) is config


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"auto_map": {"AutoModel": "evil--repo.Model"}}, "auto_map"),
        ({"custom_pipelines": {"x": {"impl": "x.Y"}}}, "custom_pipelines"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config"),
        ({"transformers_weights": "../other.safetensors"}, "transformers_weights"),
        ({"backbone": "someone/else"}, "backbone"),
        ({"text_config": {"auto_map": {}}}, "text_config.auto_map"),
        ({"parts": [{"model_type": "bert"}, {"auto_map": "x"}]}, "parts[1].auto_map"),
        ({"text_config": {"model_type": "mystery"}}, "text_config.model_type"),
        ({"model_type": "timm_wrapper"}, "model_type"),
        ({"model_type": ["bert"]}, "model_type"),
        ({"_attn_implementation": "someone/kernels"}, "_attn_implementation"),
        ({"dtype": "load"}, "dtype"),
        ({"num_hidden_layers": MAX_LAYERS + 1}, "num_hidden_layers"),
        ({"depths": [[MAX_LAYERS], [1]]}, "depths"),
        ({"hidden_size": 10**15}, "hidden_size"),
        ({"scale": float("inf")}, "scale"),
        (nested(MAX_DEPTH + 1), "a.a"),
    ],
)
def test_what_names_code_or_is_absurd_is_refused_by_its_key(more: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match="^" + named.replace("[", r"\[").replace(".", r"\.")):
        require_model_type({**BERT, **more})


def test_only_a_configuration_of_a_model_needs_a_model_type() -> None:
    preprocessor = {"image_mean": [0.5, 0.5, 0.5]}
    assert refuse_code(preprocessor) == preprocessor
    with pytest.raises(ValueError, match="model_type is missing"):
        require_model_type(preprocessor)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"[1]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1', "delimiter"),
        (b"\xff", "UTF-8"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nests deeper"),
        (b'{"a": "' + b"x" * MAX_CONFIG_BYTES + b'"}', "bytes"),
    ],
)
def test_what_is_no_small_json_object_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_object(raw)


def test_a_document_is_read_as_it_is() -> None:
    assert parse_object(json.dumps(BERT).encode()) == BERT
