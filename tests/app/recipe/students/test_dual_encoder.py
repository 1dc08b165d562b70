"""Students that encode the texts of labels: valid combinations, refusals with their reasons, and their cost."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import Archive, ArrayFacts
from app.recipe.data.sources import JsonlData
from app.recipe.footprint import network_costs, rough_cost
from app.recipe.job import JobSpec
from app.recipe.plan import model_memory, plan_training, training_flops
from app.recipe.students.architectures import DualEncoder, Transformers
from app.recipe.students.derived import network_of
from app.recipe.students.model import ModelConfig, TextInput

Document = dict[str, Any]
BERT: Document = {
    **{"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    "intermediate_size": 8,
}
DUAL: Document = {"architecture": "dual-encoder", "encoder": {"architecture": "transformers", "config": BERT}}
STARTED: Document = {"architecture": "dual-encoder", "encoder": {"architecture": "pretrained", "model": "m"}}
TEXTS: Document = {"train": "f", "format": "jsonl", "input_columns": ["a"], "label_columns": ["b"], "max_length": 32}
TOKENS = TextInput(length=32, vocabulary=100)
STORED: dict[str, ModelConfig] = {
    "m": ModelConfig(
        task="multi-label-classification", architecture=Transformers(config=BERT), input=TOKENS, classes=3
    ),
    "dual": ModelConfig(
        task="multi-label-classification",
        architecture=DualEncoder(encoder=Transformers(config=BERT), pooling="cls"),
        input=TOKENS,
        classes=3,
    ),
    "writer": ModelConfig(
        task="causal-lm", architecture=Transformers(config={"model_type": "gpt2", "n_embd": 8}), input=TOKENS
    ),
}


def job(losses: list[Document] | None = None, recipe: Document | None = None, **changes: Any) -> JobSpec:
    base: Document = {
        "task": "multi-label-classification",
        "data": TEXTS,
        "student": DUAL,
        "recipe": {"losses": losses or [{"kind": "dexml"}], **(recipe or {})},
    }
    return JobSpec.model_validate(base | changes)


def problems(**changes: Any) -> dict[str, str]:
    found = find_problems(job(**changes), InputFacts(teachers=STORED))
    return {problem.param: f"{problem.message}; {problem.accepted}" for problem in found}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"losses": [{"kind": "dexml", "criterion": "top-k", "weighted": True, "left_out": "constant"}]},
        {"losses": [{"kind": "binary-cross-entropy"}, {"kind": "binary-kd"}], "teacher": {"model": "m"}},
        {"student": {**DUAL, "temperature": 0.01, "pooling": "cls", "label_texts": {"x": "a text"}}},
        {"student": STARTED},
        {"student": {"architecture": "dual-encoder", "encoder": {"architecture": "pretrained", "model": "dual"}}},
        {"recipe": {"accumulate": 4, "precision": "bf16", "ema_decay": 0.9}},
        {"resources": {"processes": 2, "queue": "cpu"}},
        {"student": {"architecture": "transformers", "config": BERT}},
    ],
)
def test_what_goes_together_has_no_problem(changes: Document) -> None:
    assert problems(**changes) == {}


SHARDED: Document = {"processes": 2, "queue": "cpu", "sharding": "fsdp"}


@pytest.mark.parametrize(
    ("changes", "params"),
    [
        ({"recipe": {"compile": True}}, ["recipe.compile"]),
        ({"resources": SHARDED}, ["resources.sharding"]),
        ({"losses": [{"kind": "dexml", "temperature": 0.05}]}, ["recipe.losses[0].temperature"]),
        (
            {"data": {**TEXTS, "class_order": ["x", "y"]}, "student": {**DUAL, "label_texts": {"z": "a text"}}},
            ["student.label_texts"],
        ),
        (
            {"losses": [{"kind": "dexml", "criterion": "top-k", "k": 2}], "data": {**TEXTS, "class_order": ["x", "y"]}},
            ["recipe.losses[0].k"],
        ),
        (
            {"student": {**STARTED, "encoder": {**STARTED["encoder"], "class_order": ["a", "b", "c"]}}},
            ["student.encoder.class_order"],
        ),
        ({"student": STARTED, "data": {**TEXTS, "tokenizer": {"kind": "wordpiece"}}}, ["data.tokenizer"]),
        (
            {"student": {"architecture": "dual-encoder", "encoder": {"architecture": "pretrained", "model": "writer"}}},
            ["student.encoder.model"],
        ),
        ({"student": {"architecture": "pretrained", "model": "dual"}}, ["student.architecture"]),
        ({"task": "text-classification", "losses": [{"kind": "cross-entropy"}]}, ["student.architecture"]),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(changes: Document, params: list[str]) -> None:
    assert list(problems(**changes)) == params


def test_a_method_with_steps_of_its_own_is_refused() -> None:
    found = problems(recipe={"method": {"kind": "online", "teacher": DUAL}})
    assert "encodes the texts of all labels in every step" in found["recipe.method.kind"]
    assert "only the student encodes the texts of labels" in found["recipe.method.teacher.architecture"]


def test_images_are_refused() -> None:
    images: Archive = {"x": ArrayFacts((9, 8, 8), "u1"), "y": ArrayFacts((9, 3), "u1")}
    found = find_problems(job(data={"train": "f"}), InputFacts(train=images))
    assert [problem.param for problem in found] == ["student.encoder.config.model_type"]


@pytest.mark.parametrize("config", [{"model_type": "gpt2"}, {"model_type": "vit"}])
def test_an_encoder_encodes_texts(config: Document) -> None:
    with pytest.raises(ValidationError, match="does not encode texts"):
        job(student={**DUAL, "encoder": {"architecture": "transformers", "config": config}})


def test_a_loss_that_couples_texts_does_not_couple_samples_with_labels() -> None:
    pairs = {**TEXTS, "input_columns": ["a", "c"], "label_columns": []}
    student = {"architecture": "transformers", "config": BERT}
    found = problems(task="embedding", data=pairs, student=student, recipe={"accumulate": 2})
    assert list(found) == ["recipe.accumulate"]


def test_a_model_is_described_without_the_texts_of_labels_and_where_it_started() -> None:
    texts = job(student={**DUAL, "label_texts": {"x": "a text"}})
    described = DualEncoder(encoder=Transformers(config=BERT), pooling="mean")
    assert network_of(texts, {}) == described
    assert network_of(job(student=STARTED), STORED) == described
    assert network_of(job(student=STARTED), {}) is None
    fields = STORED["dual"].model_dump()
    for wrong in (DUAL | {"label_texts": {"x": "a"}}, STARTED, DUAL):
        with pytest.raises(ValidationError, match="stored dual-encoder"):
            ModelConfig.model_validate(fields | {"architecture": wrong})
    with pytest.raises(ValidationError, match="outputs are labels"):
        ModelConfig.model_validate(fields | {"task": "text-classification"})


@pytest.mark.parametrize(("wanted", "pooling"), [(None, "cls"), ("mean", "mean")])
def test_an_encoder_pools_as_the_stored_one_unless_told_otherwise(wanted: str | None, pooling: str) -> None:
    encoder = {"architecture": "pretrained", "model": "dual"}
    network = network_of(job(student={**STARTED, "encoder": encoder, "pooling": wanted}), STORED)
    assert isinstance(network, DualEncoder)
    assert network.pooling == pooling


def test_the_labels_of_every_step_are_counted() -> None:
    few, many = (_costs(labels) for labels in (10, 1010))
    assert few.labels is not None
    assert many.labels is not None
    assert many.labels.flops == 101 * few.labels.flops
    assert few.student.parameters == many.student.parameters
    spec = job(recipe={"batch_size": 10, "epochs": 1, "accumulate": 2})
    plan = plan_training(spec.recipe, 100)
    of_labels, of_texts = 2 * plan.total_steps * many.labels.flops, 3 * 100 * many.student.flops
    assert training_flops(plan, spec.recipe, many) == of_labels + of_texts
    growth = model_memory(spec, many, 100)[1] - model_memory(spec, few, 100)[1]
    chunk, vectors, logits = 246 * _activations_of_a_label(), 2 * 1000 * 8, 5 * 1000
    assert growth == 4 * (chunk + vectors + logits)


def _costs(labels: int) -> Any:
    network = network_of(job(), {})
    assert network is not None
    student = rough_cost(network, TOKENS, labels)
    assert student is not None
    return network_costs(job(), network, student, {}, TOKENS, labels)


def _activations_of_a_label() -> int:
    one = rough_cost(Transformers(config=BERT), TOKENS.model_copy(update={"length": 16}), 0)
    assert one is not None
    return one.activations


SAMPLED: Document = {**DUAL, "labels_per_step": 8}


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("recipe.accumulate", {"recipe": {"accumulate": 2}}),
        ("resources.processes", {"resources": {"processes": 2, "queue": "cpu"}}),
        ("recipe.losses[0].k", {"losses": [{"kind": "dexml", "criterion": "top-k", "k": 8}]}),
    ],
)
def test_some_labels_in_a_step_go_with_whole_batches(param: str, changes: Document) -> None:
    assert problems(**changes) == {}
    assert param in problems(student=SAMPLED, **changes)
    assert problems(student=SAMPLED) == {}


def test_a_file_of_texts_is_for_labels_that_are_encoded() -> None:
    given = {**TEXTS, "label_texts": "g", "label_text_columns": ["name", "words"]}
    assert problems(data=given) == {}
    found = problems(data=given, student={"architecture": "transformers", "config": BERT})
    assert found["data.label_texts"].startswith("is given, and a transformers encodes no labels")
    other = job(data=given).data.at("data.label_texts")
    assert isinstance(other, JsonlData)
    assert (other.input_columns, other.label_columns) == (["name", "words"], [])
    assert job(data=given).references["data.label_texts"] == "g"
    others = {**TEXTS, "input_columns": ["a", "b"], "label_columns": [], "label_texts": "g"}
    found = problems(data=others, task="embedding", losses=[{"kind": "contrastive"}], student=DUAL["encoder"])
    assert found["data.label_texts"]
