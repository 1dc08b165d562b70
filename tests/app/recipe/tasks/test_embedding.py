"""Jobs of sentence encoders: valid combinations, and refusals with their reasons."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import FirstLine
from app.recipe.job import JobSpec
from app.recipe.students.derived import network_of
from app.recipe.students.model import ModelConfig
from app.recipe.students.vectors import embedding_of

Document = dict[str, Any]
BERT: Document = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
ENCODER: Document = {"architecture": "transformers", "config": BERT}
PAIRS: Document = {"train": "f", "format": "csv", "input_columns": ["a", "b"]}
SINGLE: Document = {"train": "f", "format": "jsonl", "input_columns": ["a"]}
EVALUATED: Document = {"eval": "g", "eval_input_columns": ["b", "c"]}
LISTS: Document = {"train": "f", "format": "jsonl", "input_columns": ["q"], "candidate_columns": ["c"]}
MINED: Document = {"mining": {"count": 2, "ratio": 0.9, "skip_first": 1}}
TAUGHT: Document = {"teacher": {"model": "t"}, "recipe": {"losses": [{"kind": "embedding-distance"}]}}
TEACHER: Document = {
    "task": "embedding",
    "architecture": ENCODER,
    "input": {"length": 16, "vocabulary": 100},
    "targets": 8,
    "embedding": {"pooling": "cls"},
}


def job(**changes: Any) -> JobSpec:
    losses = [{"kind": "contrastive"}]
    base = {"task": "embedding", "data": PAIRS, "student": ENCODER, "recipe": {"losses": losses}}
    return JobSpec.model_validate(base | changes)


def problems(**changes: Any) -> list[str]:
    return [problem.param for problem in find_problems(job(**changes))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        TAUGHT,
        {**TAUGHT, "data": SINGLE | EVALUATED},
        {**TAUGHT, "data": SINGLE | EVALUATED | {"eval_label_columns": ["score"]}},
        {"data": PAIRS | {"label_columns": ["score"]}, "recipe": {"losses": [{"kind": "pair-score"}]}},
        {"data": PAIRS | EVALUATED | {"eval_label_columns": ["score"]}},
        {"data": PAIRS | {"augment": [{"kind": "token-mask"}]}},
        {**TAUGHT, "student": {"architecture": "shrink", "layers": 1}},
        {**TAUGHT, "recipe": {"losses": [{"kind": "similarity-matrix"}, {"kind": "rkd"}]}},
        {**TAUGHT, "recipe": {"losses": [{"kind": "contrastive", "target": "teacher"}]}},
        {"embedding": {"pooling": "cls", "normalise": True}},
        {"data": LISTS},
        {"data": LISTS | {"candidate_columns": ["p", "n"], "label_columns": ["s"]}},
        {"data": LISTS | {"eval": "g", "eval_input_columns": ["a", "b"], "eval_candidate_columns": []}},
        {**TAUGHT, "data": SINGLE | {"eval": "g", "eval_candidate_columns": ["c"]}},
        {**TAUGHT, "data": LISTS, "recipe": {"losses": [{"kind": "embedding-distance"}, {"kind": "rkd"}]}},
        {**TAUGHT, "data": LISTS, "recipe": {"losses": [{"kind": "contrastive", "target": "teacher"}]}},
        {"recipe": {"losses": [{"kind": "mw"}]}},
        {"data": LISTS, "recipe": {"losses": [{"kind": "mw", "per_query": True}]}},
        {"data": LISTS | {"label_columns": ["s"]}, "recipe": {"losses": [{"kind": "unime"}], "accumulate": 2}},
        {"recipe": {"losses": [{"kind": "dexml"}]}},
        {"data": LISTS | {"eval": "g", "corpus": "h", "label_columns": ["s"]}},
        {"data": PAIRS | {"eval": "g", "corpus": "h"}},
        {**TAUGHT, "data": LISTS, "recipe": {"losses": [{"kind": "unime", "target": "teacher"}]}},
        {**TAUGHT, "data": LISTS, "recipe": {"losses": [{"kind": "lg-anna", "relevance": "teacher"}]}},
        {**TAUGHT, "data": LISTS | {"label_columns": ["s"]}, "recipe": {"losses": [{"kind": "lg-anna"}]}},
        {"data": PAIRS | MINED},
        {"teacher": {"model": "t"}, "data": PAIRS | MINED},
        {**TAUGHT, "data": PAIRS | MINED, "recipe": {"losses": [{"kind": "lg-anna", "relevance": "teacher"}]}},
        {"data": LISTS | {"mining": {"keep": "margin", "margin": 0.1}, "label_columns": ["s"]}},
    ],
)
def test_what_goes_together_has_no_problem(changes: Document) -> None:
    assert problems(**changes) == []


@pytest.mark.parametrize(
    ("changes", "params"),
    [
        ({**TAUGHT, "data": SINGLE}, ["data.eval"]),
        ({**TAUGHT, "data": SINGLE | {"eval": "g"}}, ["data.eval_input_columns"]),
        ({**TAUGHT, "data": SINGLE | EVALUATED | {"eval_input_columns": ["b"]}}, ["data.eval_input_columns"]),
        ({**TAUGHT, "data": SINGLE | EVALUATED | {"label_columns": ["score"]}}, ["data.label_columns"]),
        ({"data": SINGLE | EVALUATED}, ["recipe.losses[0].kind"]),
        ({"data": PAIRS | {"eval_input_columns": ["b", "c"]}}, ["data.eval"]),
        ({"data": PAIRS | {"input_columns": ["a", "b", "c"]}}, ["data.input_columns"]),
        ({"data": PAIRS | {"label_columns": ["s", "t"]}}, ["data.label_columns"]),
        ({"data": PAIRS | EVALUATED | {"eval_label_columns": ["s", "t"]}}, ["data.eval_label_columns"]),
        ({"data": LISTS | {"format": "csv"}}, ["data.candidate_columns"]),
        ({"data": LISTS | {"input_columns": ["q", "r"]}}, ["data.input_columns"]),
        ({"data": LISTS | {"input_columns": ["c"]}}, ["data.candidate_columns"]),
        ({"data": LISTS | {"label_columns": ["s", "t"]}}, ["data.label_columns"]),
        ({"data": LISTS | {"eval_candidate_columns": ["d"]}}, ["data.eval"]),
        ({"data": LISTS | {"eval": "g", "eval_candidate_columns": []}}, ["data.eval_input_columns"]),
        ({"data": LISTS, "recipe": {"losses": [{"kind": "pair-score"}]}}, ["recipe.losses[0].kind"]),
        (
            {"data": LISTS, "recipe": {"losses": [{"kind": "contrastive", "anchors": "both"}]}},
            ["recipe.losses[0].anchors"],
        ),
        ({"recipe": {"losses": [{"kind": "unime"}]}}, ["recipe.losses[0].kind"]),
        ({**TAUGHT, "recipe": {"losses": [{"kind": "lg-anna"}]}}, ["recipe.losses[0].kind"]),
        ({"data": LISTS, "recipe": {"losses": [{"kind": "unime"}]}}, ["data.label_columns"]),
        ({**TAUGHT, "data": LISTS, "recipe": {"losses": [{"kind": "lg-anna"}]}}, ["data.label_columns"]),
        ({"data": LISTS, "recipe": {"losses": [{"kind": "lg-anna", "relevance": "teacher"}]}}, ["teacher"]),
        ({"data": LISTS, "recipe": {"losses": [{"kind": "mw"}], "accumulate": 2}}, ["recipe.accumulate"]),
        ({"data": LISTS, "recipe": {"losses": [{"kind": "dexml", "weighted": True}]}}, ["data.label_columns"]),
        ({"data": LISTS | {"corpus": "h"}}, ["data.corpus"]),
        ({"data": PAIRS | {"eval": "g", "corpus": "h", "label_columns": ["s"]}}, ["data.corpus"]),
        ({**TAUGHT, "data": SINGLE | EVALUATED | MINED}, ["data.mining"]),
        (
            {"data": LISTS | MINED | {"label_columns": ["s"]}, "recipe": {"losses": [{"kind": "unime"}]}},
            ["data.mining"],
        ),
        (
            {"data": PAIRS | MINED | {"label_columns": ["s"]}, "recipe": {"losses": [{"kind": "pair-score"}]}},
            ["recipe.losses[0].kind"],
        ),
        (
            {"data": PAIRS | MINED, "recipe": {"losses": [{"kind": "contrastive", "anchors": "both"}]}},
            ["recipe.losses[0].anchors"],
        ),
        ({"data": {"train": "f"}}, ["data.format"]),
        ({"data": PAIRS | {"classes": 3}}, ["data.classes"]),
        ({"data": PAIRS | {"targets_transform": {"kind": "soft-landmarks"}}}, ["data.targets_transform"]),
        ({"data": PAIRS | {"augment": [{"kind": "flip"}]}}, ["data.augment[0].kind"]),
        ({"recipe": {"losses": [{"kind": "pair-score"}]}}, ["data.label_columns"]),
        ({"recipe": {"losses": [{"kind": "cross-entropy"}]}}, ["recipe.losses[0].kind"]),
        ({"recipe": {"losses": [{"kind": "contrastive"}], "accumulate": 2}}, ["recipe.accumulate"]),
        ({"recipe": {"losses": [{"kind": "contrastive", "target": "teacher"}]}}, ["teacher"]),
        ({**TAUGHT, "teacher_cache": {"store": "top-k", "k": 2}}, ["teacher_cache.store"]),
        ({"student": {"architecture": "mlp"}}, ["student.architecture"]),
        ({"student": {"architecture": "transformers", "config": {"model_type": "vit"}}}, ["student.config.model_type"]),
        ({"student": {"architecture": "shrink", "layers": 1}}, ["student.architecture"]),
    ],
)
def test_what_does_not_go_together_is_blamed_on_its_field(changes: Document, params: list[str]) -> None:
    assert problems(**changes) == params


def test_a_rule_of_mining_has_its_own_field_alone() -> None:
    for wrong in ({"margin": 0.1}, {"keep": "margin", "ratio": 0.9}, {"keep": "all", "margin": 0.1}):
        with pytest.raises(ValidationError, match="is only allowed with keep"):
            job(data=PAIRS | {"mining": wrong})


def test_a_stored_document_with_all_fields_is_read_again() -> None:
    data = PAIRS | {"mining": {"keep": "margin", "margin": 0.1}}
    loss = {"kind": "lg-anna", "relevance": "teacher", "keep": "ratio", "ratio": 0.8}
    given = job(data=data, teacher={"model": "t"}, recipe={"losses": [loss]})
    assert JobSpec.model_validate(given.model_dump(mode="json")) == given


def test_mining_is_refused_for_other_tasks_and_methods_that_keep_samples_back() -> None:
    given = {"train": "f", "format": "csv", "input_columns": ["a"], "label_columns": ["y"], **MINED}
    other = job(task="text-classification", data=given, recipe={"losses": [{"kind": "cross-entropy"}]})
    assert [problem.param for problem in find_problems(other)] == ["data.mining"]
    method = {"losses": [{"kind": "contrastive", "target": "teacher"}], "method": {"kind": "meta"}}
    found = problems(teacher={"model": "t"}, data=PAIRS | MINED, recipe=method)
    assert "data.mining" in found


def test_vectors_of_several_teachers_have_no_mean() -> None:
    several = [{"model": "t", "name": "one"}, {"model": "u", "name": "two"}]
    changes = {"teachers": several, "recipe": {"losses": [{"kind": "similarity-matrix"}]}}
    assert problems(**changes) == ["teachers"]
    assert problems(**changes, teacher_weighting="entropy") == ["teacher_weighting", "teachers"]


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"label_columns": []}, "data.label_columns"),
        ({"eval_input_columns": ["c"]}, "data.eval_input_columns"),
        ({"eval_label_columns": ["c"]}, "data.eval_label_columns"),
        ({"candidate_columns": ["c"]}, "data.candidate_columns"),
        ({"corpus": "h"}, "data.corpus"),
        ({"eval_candidate_columns": ["c"]}, "data.eval_candidate_columns"),
    ],
)
def test_other_tasks_have_labels_and_the_same_columns_in_both_files(data: Document, param: str) -> None:
    table = {"train": "f", "eval": "g", "format": "csv", "input_columns": ["a"], "label_columns": ["b"]}
    losses = {"losses": [{"kind": "cross-entropy"}]}
    assert problems(task="text-classification", data=table | data, recipe=losses) == [param]


def test_an_embedding_is_for_encoders_alone() -> None:
    data = {"train": "f", "format": "csv", "input_columns": ["a"], "label_columns": ["b"]}
    losses = {"losses": [{"kind": "cross-entropy"}]}
    assert problems(task="text-classification", data=data, recipe=losses, embedding={}) == ["embedding"]


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "contrastive", "teacher": "teacher"},
        {"kind": "contrastive", "teacher_temperature": 0.1},
        {"kind": "pair-score", "lowest": 5.0},
        {"kind": "embedding-distance", "projection": "conv1x1"},
        {"kind": "similarity-matrix", "temperature": 0.0},
        {"kind": "unime", "teacher": "teacher"},
        {"kind": "lg-anna", "keep": "ratio", "margin": 0.1},
    ],
)
def test_settings_that_contradict_each_other_are_refused(loss: Document) -> None:
    with pytest.raises(ValidationError):
        job(recipe={"losses": [loss]})


def test_the_columns_of_each_file_are_held_against_its_header() -> None:
    spec = job(**TAUGHT, data={"train": "f", "format": "csv", "input_columns": ["a"]} | EVALUATED)
    assert find_problems(spec, InputFacts(FirstLine("a,x"), FirstLine("b,c"))) == []
    found = find_problems(spec, InputFacts(FirstLine("x,b"), FirstLine("a,b")))
    assert [problem.param for problem in found] == ["data.input_columns", "data.eval_input_columns"]
    listed = job(data=LISTS | {"eval": "g"})
    found = find_problems(listed, InputFacts(FirstLine('{"q": "", "c": []}'), FirstLine('{"q": "", "d": []}')))
    assert [problem.param for problem in found] == ["data.candidate_columns"]


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding": None},
        {"targets": None},
        {"architecture": {"architecture": "mlp"}},
        {"architecture": {"architecture": "transformers", "config": {"model_type": "vit"}}},
        {"task": "regression"},
    ],
)
def test_a_description_of_an_encoder_is_whole(changes: Document) -> None:
    ModelConfig.model_validate(TEACHER)
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(TEACHER | changes)


@pytest.mark.parametrize(
    ("own", "student", "expected"),
    [
        (None, {"architecture": "shrink", "layers": 1}, ("cls", False)),
        ({"normalise": True}, {"architecture": "shrink", "layers": 1}, ("mean", True)),
        (None, ENCODER, ("mean", False)),
    ],
)
def test_a_smaller_copy_makes_its_vectors_as_its_teacher_does(
    own: Document | None, student: Document, expected: tuple[str, bool]
) -> None:
    spec, known = job(**TAUGHT, student=student, embedding=own), {"t": ModelConfig.model_validate(TEACHER)}
    found = embedding_of(spec, known)
    assert found is not None
    assert (found.pooling, found.normalise) == expected
    assert network_of(spec, known) is not None


def test_a_teacher_of_another_task_is_refused() -> None:
    classifier = ModelConfig.model_validate(
        TEACHER | {"task": "text-classification", "targets": None, "classes": 2, "embedding": None}
    )
    [problem] = find_problems(job(**TAUGHT), InputFacts(teachers={"t": classifier}))
    assert (problem.param, problem.accepted) == ("teacher.model", "a model for embedding")


def test_a_search_of_sub_networks_takes_neither_lists_nor_a_corpus() -> None:
    method = {"kind": "supernet", "spaces": [{"layers": [0.5, 1], "width": [0.5, 1], "ffn_ratio": [0.5]}]}
    qkv = {name: f"encoder.layer.1.attention.self.{name[:-1]}" for name in ("queries", "keys")}
    layer = {side: {**qkv, "values": "encoder.layer.1.attention.self.value"} for side in ("teacher", "student")}
    losses = [{"kind": "attention-relation", "relation_heads": 2, "layer": layer}]
    changes = {"student": {"architecture": "shrink"}, "recipe": {"losses": losses, "method": method}}
    found = problems(**TAUGHT | changes, data=LISTS | {"eval": "g", "corpus": "h"})
    assert [param for param in found if param.startswith("data.")] == ["data.candidate_columns", "data.corpus"]
