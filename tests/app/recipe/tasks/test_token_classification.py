"""Jobs of taggers: valid combinations, and refusals with their reasons."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.augmentation import TokenDelete, TokenMask
from app.recipe.diagnostics import Calibration
from app.recipe.job import JobSpec
from app.recipe.methods import METHODS
from app.recipe.students.model import ModelConfig
from app.recipe.tasks import TASKS

Document = dict[str, Any]
TASK = TASKS["token-classification"]
BERT: Document = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
ENCODER: Document = {"architecture": "transformers", "config": BERT}
DATA: Document = {"train": "f", "format": "jsonl", "input_columns": ["words"], "label_columns": ["tags"]}
TAUGHT: Document = {"teacher": {"model": "t"}, "recipe": {"losses": [{"kind": "kd"}]}}
PAIR: Document = {"teacher": "bert", "student": "bert"}
RELATED: Document = {"teacher": {"qkv": "bert"}, "student": {"qkv": "bert"}}
TEACHER: Document = {
    "task": "token-classification",
    "architecture": ENCODER,
    "input": {"length": 128, "vocabulary": 100},
    "classes": 3,
    "class_names": ["O", "B-X", "I-X"],
}


def with_loss(**loss: Any) -> Document:
    return {"teacher": {"model": "t"}, "recipe": {"losses": [loss]}}


def problems(known_as_t: Document | None = None, **changes: Any) -> dict[str, str]:
    losses = [{"kind": "cross-entropy"}]
    base = {"task": "token-classification", "data": DATA, "student": ENCODER, "recipe": {"losses": losses}}
    job = JobSpec.model_validate(base | changes)
    known = {"t": ModelConfig.model_validate(known_as_t)} if known_as_t else {}
    return {problem.param: problem.message for problem in find_problems(job, InputFacts(teachers=known))}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        TAUGHT,
        {**TAUGHT, "teacher": None, "teachers": [{"model": "t", "name": "a"}, {"model": "u", "name": "b"}]},
        {
            **TAUGHT,
            "teacher": None,
            "teachers": [{"model": "t", "name": "a"}, {"model": "u", "name": "b"}],
            "teacher_weighting": "entropy",
        },
        {**TAUGHT, "teacher_cache": {"store": "top-k", "k": 2}},
        {**TAUGHT, "student": {"architecture": "shrink", "layers": 1}},
        {**TAUGHT, "student": {"architecture": "pretrained", "model": "t"}},
        {"data": DATA | {"augment": [{"kind": "token-mask"}]}},
        {"data": DATA | {"class_order": ["O", "B-X", "I-X"]}},
        {"data": DATA | {"tokenizer": {"kind": "bpe"}}},
        {**TAUGHT, "data": DATA | {"tokenizer": {"kind": "teacher"}}},
        {"data": DATA | {"format": "csv"}},
        {"data": DATA | {"format": "parquet"}},
        {"data": DATA | {"format": "hf-dataset", "split": "train"}},
        {"evaluation": {"require_teacher": {"entity_f1": 0.5}}, **TAUGHT},
        {"recipe": {"losses": [{"kind": "cross-entropy"}], "method": {"kind": "mutual"}}},
        with_loss(kind="hint", pairs=[PAIR]),
        with_loss(kind="rkd", pair=PAIR),
        with_loss(kind="attention-relation", layer=RELATED),
        with_loss(kind="mi-alpha", pair=PAIR),
        {"evaluation": {"diagnostics": [{"kind": "calibration"}]}},
    ],
)
def test_what_goes_together_has_no_problem(changes: Document) -> None:
    assert problems(TEACHER if "teacher" in changes else None, **changes) == {}


@pytest.mark.parametrize(
    ("changes", "param", "told"),
    [
        ({"data": DATA | {"input_columns": ["a", "b"]}}, "data.input_columns", "names 2 columns of lists of words"),
        ({"data": DATA | {"label_columns": ["a", "b"]}}, "data.label_columns", "names 2 columns of lists of tags"),
        ({"data": DATA | {"label_columns": []}}, "data.label_columns", "is missing"),
        ({"data": {"train": "f"}}, "data.format", "npz"),
        (
            {"data": DATA | {"augment": [{"kind": "token-delete"}]}},
            "data.augment[0].kind",
            "token-delete is not for token-classification: it moves tokens away from their tags",
        ),
        ({"student": {"architecture": "mlp", "hidden": [8]}}, "student.architecture", "reads no texts"),
        (
            {"student": {"architecture": "transformers", "config": {"model_type": "gpt2"}}},
            "student.config.model_type",
            "gpt2 is not for token-classification",
        ),
        (with_loss(kind="dist"), "recipe.losses[0].kind", "it compares the rows of a batch with each other"),
        (with_loss(kind="rkd"), "recipe.losses[0].pair", "is missing, and the outputs are those of tokens"),
        (
            with_loss(kind="attention-relation", layer=RELATED, relation="mse"),
            "recipe.losses[0].relation",
            "is mse, whose mean counts padding",
        ),
        (
            with_loss(kind="activation-boundary", pairs=[PAIR]),
            "recipe.losses[0].kind",
            "activation-boundary is not for token-classification: its sums and the batch norm of its connectors count",
        ),
        (
            with_loss(kind="lipschitz", pairs=[PAIR, PAIR]),
            "recipe.losses[0].kind",
            "lipschitz is not for token-classification: it compares maps",
        ),
        ({"recipe": {"losses": [{"kind": "mse"}]}}, "recipe.losses[0].kind", "mse is not for token-classification"),
        ({**TAUGHT, "data": DATA | {"tokenizer": {"kind": "bpe"}}}, "data.tokenizer", "token by token"),
    ],
)
def test_what_can_not_work_is_refused_by_name(changes: Document, param: str, told: str) -> None:
    found = problems(**changes)
    assert list(found) == [param]
    assert told in found[param]


def test_a_teacher_of_another_task_is_refused() -> None:
    found = problems({**TEACHER, "task": "text-classification"}, **TAUGHT)
    assert found["teacher.model"] == "was made for text-classification"


def test_options_fit_where_a_row_is_a_word() -> None:
    assert TASK.fits(TokenMask)
    assert not TASK.fits(TokenDelete)
    assert TASK.fits(Calibration)
    fitting = {method.model_fields["kind"].default for method in METHODS if TASK.fits(method)}
    assert {"supervised", "mutual"} <= fitting
    assert not fitting & {"on-policy", "sequence-level"}


def test_entities_decide_and_else_the_tags_themselves() -> None:
    main = TASK.main_metric
    assert main.of({"entity_f1": 0.5, "accuracy": 0.9, "nll": 1.0}) == "entity_f1"
    assert main.of({"accuracy": 0.9, "nll": 1.0}) == "accuracy"
