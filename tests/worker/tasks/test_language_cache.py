"""A language model's largest logits, computed before training and cached for the next job."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.tasks.language import DISTILLED, GPT2, LENGTH, LLAMA, Document, stage
from tests.worker.training.builders import finished, play, weights
from worker.protocol import Assignment, CachePlace, CheckpointSaved
from worker.students.weights import load_model

EVERYTHING: Document = {"store": "top-k", "k": 310}
"""The number of tokens of the teacher's tokenizer."""
FEW: Document = {"store": "top-k", "k": 8, "dtype": "fp16"}
BATCH = 8
OUTSIDE: Document = {"kind": "akl"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a teacher that learned from the texts."""
    folder = tmp_path_factory.mktemp("cache") / "teacher"
    bundle = finished(folder, stage(folder, GPT2))
    assert load_model(bundle).config.outputs == EVERYTHING["k"]
    return bundle


def cached_job(folder: Path, cache: Path | None, make: Any, **choice: Any) -> Assignment:
    place = CachePlace(folder=str(cache)) if cache else None
    return make(folder, teacher_cache=choice).model_copy(update={"teacher_cache": place})


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(DISTILLED, id="forward"),
        pytest.param([{"kind": "jsd"}, OUTSIDE], id="others", marks=pytest.mark.long),
    ],
)
def test_caching_all_logits_trains_as_the_live_teacher(tmp_path: Path, teacher: Path, losses: list[Document]) -> None:
    make = partial(
        stage, network=LLAMA, teacher=teacher, losses=losses, recipe={"optimizer": {"kind": "sgd", "lr": 0.1}}
    )
    live, sparse = tmp_path / "live", tmp_path / "sparse"
    finished(live, make(live))
    finished(sparse, cached_job(sparse, tmp_path / "cache", make, **EVERYTHING))
    ours, theirs = (load_model(folder / "bundle").network.state_dict() for folder in (sparse, live))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_teacher_runs_once_and_the_cache_size_is_reported(tmp_path: Path, teacher: Path) -> None:
    make = partial(stage, network=LLAMA, teacher=teacher, losses=DISTILLED)
    figures = []
    for name in ("first", "second"):
        folder = tmp_path / name
        bundle = finished(folder, cached_job(folder, tmp_path / "cache", make, **FEW))
        figures.append(json.loads((bundle / "report.json").read_text())["train"]["teacher_cache"]["teacher"])
    first, second = figures
    sequences = first["misses"]
    assert first["hits"] == 2 * sequences  # two epochs, behind the words before them
    assert (second["misses"], second["hits"]) == (0, 3 * sequences)
    assert first["bytes_per_token"] == 8 * (2 + 2) + 4
    assert first["bytes"] == sequences * (LENGTH * first["bytes_per_token"] + 1)
    assert weights(tmp_path / "first") == weights(tmp_path / "second")


@pytest.mark.parametrize(
    "cached",
    [pytest.param(True, id="cached_job"), pytest.param(False, id="nowhere", marks=pytest.mark.long)],
)
def test_a_student_of_cached_logits_resumes_to_the_same_bits(tmp_path: Path, teacher: Path, cached: bool) -> None:
    make = partial(stage, network=LLAMA, teacher=teacher, losses=[*DISTILLED, OUTSIDE])
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    whole = finished(straight, cached_job(straight, tmp_path / "own" if cached else None, make, **FEW))
    misses = json.loads((whole / "report.json").read_text())["train"]["teacher_cache"]["teacher"]["misses"]
    before = -(-misses // BATCH) if cached else 0  # computing outputs at the start may be stopped, too
    assignment = cached_job(halting, tmp_path / "cache" if cached else None, make, **FEW)
    stopped = play(assignment, halting, steps=before + 2)
    saved = stopped.of(CheckpointSaved)[-1].path
    finished(halting, assignment.model_copy(update={"resume": saved}))
    assert weights(halting) == weights(straight)
