"""Every kind of loss, and every method of the examples, ends bit-equal however often a run is stopped and resumed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES
from tests import kinds
from tests.kinds import ENCODER, KINDS, LISTS, PAIRS, VIT, job_of, methods, small_job, term
from tests.worker.training.builders import Played, play, weights
from worker.protocol import Assignment, CachePlace, CheckpointSaved, Failed, Finished, Metrics, Stopped

Document = dict[str, Any]
EPOCH = 3
"""Steps of an epoch of every job here."""
CROSS_ENTROPY: Document = {"kind": "cross-entropy"}
RAMPED: Document = {"kind": "kd", "weight": {"kind": "cosine", "first": 0.0, "last": 1.0, "to_epoch": 1.5}}
HALF_PRECISION: Document = {"precision": "bf16"}
AUGMENT = [{"kind": "crop", "padding": 1}, {"kind": "flip"}, {"kind": "mixup"}]
AUGMENTED = {"train": "classes", "augment": AUGMENT, "augment_epochs": 2}
COMMITTEE: Document = {
    "teachers": [{"model": "cnn", "name": "cnn", "weight": 2.0}, {"model": "other", "name": "other"}],
    "teacher_weighting": "entropy",
}
SEPARATE = {kind for kind, one in zip(KINDS, LOSSES, strict=True) if not one.couples_rows}
"""Kinds of which a batch can be computed in parts."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data and teachers by the names that the jobs have for them."""
    folder = tmp_path_factory.mktemp("inputs")
    kinds.write_data(folder)
    kinds.write_teachers(folder)
    return {path.stem: str(path) for path in folder.iterdir()}


def assigned(job: Document, inputs: dict[str, str], folder: Path, resume: str | None = None) -> Assignment:
    """The job as a worker receives it, with a separate teacher cache."""
    spec = JobSpec.model_validate(job)
    place = CachePlace(folder=str(folder / "teachers"))
    named = {name: inputs[name] for name in spec.references.values()}
    return Assignment(spec=spec, inputs=named, resume=resume, teacher_cache=place)


def halts(name: str, job: Document) -> list[int]:
    """Steps to stop at: within the stages and at their end, where there are any, and within the main training."""
    draw, recipe = random.Random(name), job["recipe"]
    before = EPOCH * sum(stage["epochs"] for stage in recipe.get("stages", ()))
    within = [draw.randrange(1, before), before] if before else []
    return [*within, before + draw.randrange(1, EPOCH * recipe["epochs"])]


def in_pieces(job: Document, inputs: dict[str, str], folder: Path, stops: list[int]) -> Played:
    """Run to each of `stops` and resume from there; returns the last run."""
    done, resume = 0, None
    for step in stops:
        stopped = play(assigned(job, inputs, folder, resume), folder, steps=step - done)
        assert stopped.word == Stopped(step=step), stopped.word
        done, resume = step, stopped.of(CheckpointSaved)[-1].path
    return play(assigned(job, inputs, folder, resume), folder)


def require_bit_equal(name: str, job: Document, inputs: dict[str, str], tmp_path: Path) -> None:
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    whole = play(assigned(job, inputs, straight), straight)
    assert isinstance(whole.word, Finished), whole.word
    stops = halts(name, job)
    rest = in_pieces(job, inputs, halting, stops)
    assert isinstance(rest.word, Finished), rest.word
    assert rest.word.step == whole.word.step > stops[-1]
    assert weights(halting) == weights(straight)
    assert _found(rest) == _found(whole)


def _found(played: Played) -> dict[str, float]:
    values = played.of(Metrics)[-1].values
    return {name: value for name, value in values.items() if name.startswith("eval/")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_of_every_kind_resumes_bit_equal(kind: str, inputs: dict[str, str], tmp_path: Path) -> None:
    """In two parts of a batch, where they can be."""
    job = job_of(kind)
    recipe = {**job["recipe"], "clip_norm": 1.0, "accumulate": 2 if kind in SEPARATE else 1}
    require_bit_equal(kind, {**job, "recipe": recipe}, inputs, tmp_path)


@pytest.mark.parametrize("method", methods())
def test_every_method_resumes_bit_equal_with_other_settings_of_a_step(
    method: str, inputs: dict[str, str], tmp_path: Path
) -> None:
    """In bf16, channels last, with an average of the weights, and the best of them exported."""
    recipe = {**methods()[method], **HALF_PRECISION, "channels_last": True, "ema_decay": 0.8}
    require_bit_equal(method, small_job(recipe, evaluation={"keep": "best"}), inputs, tmp_path)


VARIANTS: dict[str, Document] = {
    "augmented, cached teacher": small_job({"losses": [CROSS_ENTROPY, term("kd")], "epochs": 3}, data=AUGMENTED),
    "augmented, features": small_job({"losses": [CROSS_ENTROPY, term("hint")]}, data=AUGMENTED),
    "augmented, labels corrected": small_job(
        {"losses": [CROSS_ENTROPY, term("uskd"), term("ferkd")], **HALF_PRECISION}, data=AUGMENTED
    ),
    "attention in bf16": small_job({"losses": [CROSS_ENTROPY, term("attention-relation")], **HALF_PRECISION}, VIT),
    "several teachers": small_job(
        {"losses": [CROSS_ENTROPY, term("kd"), {**term("nkd"), "teacher": "other"}]}, **COMMITTEE
    ),
    "features of one of several teachers": small_job(
        {"losses": [CROSS_ENTROPY, {**term("hint"), "teacher": "other"}]}, **COMMITTEE
    ),
    "ramps in stages": small_job({"stages": [{"epochs": 2, "losses": [RAMPED]}], "losses": [CROSS_ENTROPY, RAMPED]}),
    "outputs cached in part": small_job(
        {"losses": [CROSS_ENTROPY, term("kd")]}, teacher_cache={"store": "top-k", "k": 3, "dtype": "bf16"}
    ),
    "embeddings of augmented texts, cached teacher": small_job(
        {"losses": [{"kind": "embedding-distance"}, {"kind": "contrastive", "target": "teacher"}], **HALF_PRECISION},
        ENCODER,
        "embedding",
        data={**PAIRS, "augment": [{"kind": "token-mask"}], "augment_epochs": 2},
    ),
    "a teacher of labels that learns": small_job(
        {
            "losses": [{"kind": "binary-cross-entropy"}, {"kind": "binary-kd"}],
            "method": {"kind": "online", "losses": [{"kind": "binary-cross-entropy"}, {"kind": "binary-kd"}]},
            "accumulate": 2,
        },
        task="multi-label-classification",
    ),
    "augmented, a teacher that learns": small_job(
        {"losses": [CROSS_ENTROPY, term("bd-kd")], "method": {"kind": "online"}}, data=AUGMENTED
    ),
    "vectors of single texts": small_job(
        {"losses": [{"kind": "similarity-matrix", "compare": "mse"}, {"kind": "rkd"}]},
        ENCODER,
        "embedding",
        data={**PAIRS, "eval": "pairs", "eval_input_columns": ["one", "other"], "eval_label_columns": ["score"]}
        | {"input_columns": ["one"], "label_columns": []},
        embedding={"pooling": "cls", "normalise": True},
    ),
    "queries with ragged lists of candidates": small_job(
        {"losses": [{"kind": "embedding-distance"}, {"kind": "contrastive"}], **HALF_PRECISION},
        ENCODER,
        "embedding",
        data=LISTS,
    ),
    "a smaller encoder": small_job(
        {"losses": [{"kind": "embedding-distance", "distance": "cosine"}, {"kind": "contrastive"}]},
        {"architecture": "shrink", "layers": 1, "width": 8},
        "embedding",
        data={**PAIRS, "label_columns": []},
    ),
    "a smaller teacher": small_job(
        {"losses": [CROSS_ENTROPY, term("kd")]}, {"architecture": "shrink", "width": 8}, teacher={"model": "vit"}
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_combinations_resume_bit_equal(name: str, inputs: dict[str, str], tmp_path: Path) -> None:
    require_bit_equal(name, VARIANTS[name], inputs, tmp_path)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_module_that_a_network_does_not_have_is_an_error_of_the_loss(
    side: str, inputs: dict[str, str], tmp_path: Path
) -> None:
    pair = {"teacher": "stages.1", "student": "stages.1", side: "layers.7"}
    job = small_job({"losses": [CROSS_ENTROPY, {"kind": "hint", "pairs": [pair]}]})
    word = play(assigned(job, inputs, tmp_path), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.code, word.param) == ("invalid_job", f"recipe.losses[1].pairs[0].{side}")
    assert "'layers.7'" in word.message
    assert "stages" in word.message
