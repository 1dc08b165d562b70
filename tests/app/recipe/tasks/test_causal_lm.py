"""Accepted and refused jobs of language models."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.checks import InputFacts, find_problems
from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES
from app.recipe.students.architectures import Transformers
from app.recipe.students.inputs import TextInput
from app.recipe.students.model import ModelConfig
from app.recipe.tasks import task_of

GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}
TABLE: dict[str, Any] = {"train": "t", "format": "jsonl", "input_columns": ["text"]}


def job(**changes: Any) -> JobSpec:
    recipe = {"losses": [{"kind": "cross-entropy"}, {"kind": "kd"}], **changes.pop("recipe", {})}
    data = {**TABLE, **changes.pop("data", {})}
    base = {
        "task": "causal-lm",
        "teacher": {"model": "teacher"},
        "student": {"architecture": "transformers", "config": GPT2},
    }
    return JobSpec.model_validate({**base, "data": data, "recipe": recipe, **changes})


def teacher(length: int = 256) -> ModelConfig:
    sample = TextInput(length=length, vocabulary=50, pad=2)
    return ModelConfig(task="causal-lm", architecture=Transformers(config=GPT2), input=sample)


def fields(spec: JobSpec, **teachers: ModelConfig) -> list[str]:
    return [problem.param for problem in find_problems(spec, InputFacts(teachers=teachers or {"teacher": teacher()}))]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "hf-dataset"])
def test_a_plain_one_is_accepted(form: str) -> None:
    assert fields(job(data={"format": form})) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data": {"label_columns": ["label"]}}, "data.label_columns"),
        ({"data": {"input_columns": ["a", "b"]}}, "data.input_columns"),
        (
            {
                "data": {"tokenizer": {"kind": "wordpiece"}},
                "teacher": None,
                "recipe": {"losses": [{"kind": "cross-entropy"}]},
            },
            "data.tokenizer.kind",
        ),
        ({"data": {"tokenizer": {"kind": "bpe"}}}, "recipe.losses[1].kind"),
        (
            {
                "data": {"tokenizer": {"kind": "bpe"}},
                "recipe": {"losses": [{"kind": "uld"}]},
                "teacher_cache": {"store": "top-k", "k": 4},
            },
            "teacher_cache.store",
        ),
        ({"data": {"classes": 3}}, "data.classes"),
        ({"data": {"max_length": 512}}, "data.max_length"),
        ({"data": {"augment": [{"kind": "token-mask"}]}}, "data.augment[0].kind"),
        ({"student": {"architecture": "mlp"}}, "student.architecture"),
        ({"student": {"architecture": "transformers", "config": {"model_type": "bert"}}}, "student.config.model_type"),
        ({"teacher_weighting": "entropy"}, "teacher_weighting"),
        ({"teacher_cache": {"store": "dense", "dtype": "fp16"}}, "teacher_cache.dtype"),
        ({"teacher_cache": {"store": "top-k", "k": 51}}, "teacher_cache.k"),
        ({"evaluation": {"nme_points": [0, 1]}}, "evaluation.nme_points"),
    ],
)
def test_what_it_can_t_do_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    assert field in fields(job(**changes))


def test_a_teacher_with_another_tokenizer_may_teach() -> None:
    losses = {"losses": [{"kind": "cross-entropy"}, {"kind": "uld"}]}
    assert fields(job(data={"tokenizer": {"kind": "bpe"}}, recipe=losses)) == []


def test_a_decoder_is_for_no_other_task() -> None:
    other = job(
        task="text-classification",
        data={"label_columns": ["label"]},
        teacher=None,
        recipe={"losses": [{"kind": "cross-entropy"}]},
    )
    assert fields(other) == ["student.config.model_type"]


def test_all_other_tasks_need_labels() -> None:
    bert = {"architecture": "transformers", "config": {"model_type": "bert"}}
    other = job(task="text-classification", student=bert, teacher=None, recipe={"losses": [{"kind": "cross-entropy"}]})
    assert fields(other) == ["data.label_columns"]


def test_losses_whose_rows_are_samples_are_refused() -> None:
    for term in LOSSES:
        kind = term.model_fields["kind"].default
        if task_of("causal-lm").fits(term) or any(field.is_required() for field in term.model_fields.values()):
            continue
        found = find_problems(job(recipe={"losses": [{"kind": kind}]}), InputFacts())
        assert "recipe.losses[0].kind" in [problem.param for problem in found], kind


@pytest.mark.parametrize("more", [{"classes": 3}, {"targets": 2}, {"architecture": {"architecture": "mlp"}}])
def test_a_model_that_continues_texts_is_described_as_one(more: dict[str, Any]) -> None:
    described = teacher().model_dump()
    assert ModelConfig.model_validate(described).outputs == 50
    with pytest.raises(ValueError, match="causal-lm"):
        ModelConfig.model_validate(described | more)


ON_POLICY: dict[str, Any] = {"kind": "on-policy"}
SEQUENCES: dict[str, Any] = {"kind": "sequence-level"}
CE: dict[str, Any] = {"kind": "cross-entropy"}
TWO = {"teacher": None, "teachers": [{"model": "one", "name": "one"}, {"model": "two", "name": "two"}]}
HINT = {"kind": "hint", "pairs": [{"teacher": "transformer.h.0", "student": "transformer.h.0"}]}
NOBODY: dict[str, Any] = {"teacher": None, "data": {"tokenizer": {"kind": "bpe"}}}


def writing(generation: dict[str, Any], losses: list[dict[str, Any]] | None = None, **changes: Any) -> JobSpec:
    return job(recipe={"method": generation, **({"losses": losses} if losses else {})}, **changes)


@pytest.mark.parametrize(
    "spec",
    [
        writing(ON_POLICY),
        writing({**ON_POLICY, "share": 0.0}),
        writing({**ON_POLICY, "share": 1.0, "top_k": 1}, [{"kind": "jsd"}]),
        writing(ON_POLICY, teacher_cache={"store": "top-k", "k": 5}),
        writing(SEQUENCES),
        writing(SEQUENCES, [CE]),
        writing({**SEQUENCES, "writer": "two"}, **TWO),
    ],
)
def test_what_is_written_may_be_learned(spec: JobSpec) -> None:
    assert fields(spec) == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (writing(ON_POLICY, [CE], **NOBODY), "recipe.method"),
        (writing(SEQUENCES, [CE], **NOBODY), "recipe.method"),
        (writing({**ON_POLICY, "prompt_tokens": 100}), "recipe.method.new_tokens"),
        (writing(ON_POLICY, [CE, {"kind": "nkd"}]), "recipe.losses"),
        (writing({**ON_POLICY, "share": 1.0}), "recipe.losses[0].kind"),
        (writing(ON_POLICY, [{"kind": "kd"}, HINT]), "recipe.losses[1].kind"),
        (writing(SEQUENCES, [{"kind": "kd"}, HINT]), "recipe.losses[1].kind"),
        (writing(SEQUENCES, teacher_cache={"store": "top-k", "k": 5}), "teacher_cache.store"),
        (job(recipe={"method": ON_POLICY, "compile": True}), "recipe.compile"),
        (writing(SEQUENCES, **TWO), "recipe.method.writer"),
        (writing({**SEQUENCES, "writer": "three"}), "recipe.method.writer"),
        (writing(ON_POLICY, resources={"processes": 2, "queue": "cpu"}), "resources.processes"),
        (writing(SEQUENCES, resources={"nodes": 2, "queue": "gpu"}), "resources.nodes"),
        (
            job(task="embedding", recipe={"method": ON_POLICY, "losses": [{"kind": "embedding-distance"}]}),
            "recipe.method.kind",
        ),
    ],
)
def test_what_can_t_be_written_or_would_teach_nothing_is_refused_by_name(spec: JobSpec, field: str) -> None:
    assert field in fields(spec)


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 1.1},
        {"temperature": 0.0},
        {"top_k": 0},
        {"new_tokens": 0},
        {"prompt_tokens": 0},
        {"writer": "teacher"},
    ],
)
def test_writing_has_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"recipe.method.on-policy.{next(iter(wrong))}"):
        writing({**ON_POLICY, **wrong})


LARGE: dict[str, Any] = {"model_type": "qwen2", "hidden_size": 2048, "num_hidden_layers": 24, "intermediate_size": 5504}
PRETRAINED: dict[str, Any] = {"architecture": "pretrained", "model": "large"}


def large(vocabulary: int) -> ModelConfig:
    sample = TextInput(length=256, vocabulary=vocabulary, pad=2)
    config = {**LARGE, "num_hidden_layers": 1}
    return ModelConfig(task="causal-lm", architecture=Transformers(config=config), input=sample)


def test_weights_that_no_graph_can_hold_are_refused_before_anything_is_built() -> None:
    student = {"architecture": "transformers", "config": LARGE}
    graph = {"export": ["safetensors", "onnx"]}
    assert fields(job(student=student, **graph)) == ["export"]
    assert fields(job(student=student)) == fields(job(student=student, export=["safetensors"])) == []
    smaller = {"architecture": "transformers", "config": {**LARGE, "num_hidden_layers": 2}}
    assert fields(job(student=smaller, **graph)) == []
    known = {"teacher": teacher(), "large": large(300_000)}
    assert fields(job(student=PRETRAINED, **graph), **known) == ["export"]
    assert fields(job(student=PRETRAINED, **graph), **{**known, "large": large(50_000)}) == []


@pytest.mark.parametrize("size", ["wide", [3], None, 0, {"a": 1}])
def test_sizes_that_are_none_are_left_to_the_library(size: Any) -> None:
    student = {"architecture": "transformers", "config": {**LARGE, "hidden_size": size}}
    assert set(fields(job(student=student, export=["safetensors", "onnx"]))) <= {"export"}
