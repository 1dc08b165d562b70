"""A job's settings for caching teacher outputs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, Problem, find_problems
from app.recipe.job import JobSpec
from app.recipe.losses import Kd
from app.recipe.losses.taps import Tap, Taps
from app.recipe.students.model import ModelConfig
from app.recipe.teachers.cache import DenseCache, NoCache, TopKCache

CLASSES = 10


def job(cache: dict[str, Any] | None = None, **fields: Any) -> JobSpec:
    document: dict[str, Any] = {
        "data": {"train": "file_a"},
        "teacher": {"model": "model_a"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "kd"}]},
    }
    return JobSpec.model_validate(document | ({"teacher_cache": cache} if cache else {}) | fields)


def problems(spec: JobSpec) -> list[Problem]:
    teacher = ModelConfig.model_validate(
        {
            "architecture": {"architecture": "mlp"},
            "input": {"channels": 1, "height": 8, "width": 8},
            "preprocessing": {"mean": [0.0], "std": [1.0]},
            "classes": CLASSES,
        }
    )
    found = find_problems(spec, InputFacts(teachers={"model_a": teacher}))
    return [problem for problem in found if problem.param.startswith("teacher_cache")]


def test_everything_is_cached_exactly_by_default() -> None:
    assert job().teacher_cache == DenseCache(dtype="fp32")
    assert DenseCache().exact
    assert not DenseCache(dtype="bf16").exact
    assert not TopKCache(k=1).exact


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"store": "off"}, NoCache()),
        ({"store": "dense", "dtype": "fp16"}, DenseCache(dtype="fp16")),
        ({"store": "top-k", "k": 5, "dtype": "bf16"}, TopKCache(k=5, dtype="bf16")),
    ],
)
def test_every_choice_is_sound(document: dict[str, Any], expected: object) -> None:
    assert job(document).teacher_cache == expected
    assert problems(job(document)) == []


@pytest.mark.parametrize(
    "document",
    [
        {"store": "sparse"},
        {"store": "top-k"},
        {"store": "top-k", "k": 0},
        {"store": "dense", "k": 5},
        {"store": "dense", "dtype": "fp64"},
        {"store": "off", "dtype": "fp32"},
        {"dtype": "fp16"},
    ],
)
def test_what_makes_no_sense_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(document)


def test_k_is_at_most_the_number_of_classes() -> None:
    assert problems(job({"store": "top-k", "k": CLASSES})) == []
    (problem,) = problems(job({"store": "top-k", "k": CLASSES + 1}))
    assert (problem.param, problem.accepted) == ("teacher_cache.k", "at most 10")


def test_numbers_that_are_no_logits_have_no_largest_ones() -> None:
    assert "teacher_cache.store" in {p.param for p in problems(job({"store": "top-k", "k": 2}, task="regression"))}
    assert problems(job({"store": "dense", "dtype": "bf16"}, task="regression")) == []


def test_a_choice_without_a_teacher_is_refused() -> None:
    alone = {"teacher": None, "recipe": {"losses": [{"kind": "cross-entropy"}]}}
    assert [problem.param for problem in problems(job({"store": "top-k", "k": 2}, **alone))] == ["teacher_cache"]
    assert problems(job(**alone)) == []


def test_a_lossy_choice_is_refused_where_nothing_would_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kd, "taps", lambda self: Taps(teacher=(Tap(path="0"),)))
    (problem,) = problems(job({"store": "dense", "dtype": "fp16"}))
    assert (problem.param, problem.accepted) == ("teacher_cache", "dense in fp32, or off")
    assert problems(job()) == []
