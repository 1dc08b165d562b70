"""A language model's largest logits, said before training and kept for the next job."""

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
"""As many as the teacher's tokenizer knows tokens."""
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


def kept(folder: Path, cache: Path | None, make: Any, **choice: Any) -> Assignment:
    place = CachePlace(folder=str(cache)) if cache else None
    return make(folder, teacher_cache=choice).model_copy(update={"teacher_cache": place})


@pytest.mark.parametrize("losses", [DISTILLED, [{"kind": "jsd"}, OUTSIDE]], ids=["forward", "others"])
def test_all_logits_kept_teach_as_the_teacher_does(tmp_path: Path, teacher: Path, losses: list[Document]) -> None:
    make = partial(
        stage, network=LLAMA, teacher=teacher, losses=losses, recipe={"optimizer": {"kind": "sgd", "lr": 0.1}}
    )
    asked, told = tmp_path / "asked", tmp_path / "told"
    finished(asked, make(asked))
    finished(told, kept(told, tmp_path / "cache", make, **EVERYTHING))
    ours, theirs = (load_model(folder / "bundle").network.state_dict() for folder in (told, asked))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_teacher_speaks_once_and_its_bytes_are_told(tmp_path: Path, teacher: Path) -> None:
    make = partial(stage, network=LLAMA, teacher=teacher, losses=DISTILLED)
    told = []
    for name in ("first", "second"):
        folder = tmp_path / name
        bundle = finished(folder, kept(folder, tmp_path / "cache", make, **FEW))
        told.append(json.loads((bundle / "report.json").read_text())["train"]["teacher_cache"]["teacher"])
    first, second = told
    sequences = first["misses"]
    assert first["hits"] == 2 * sequences  # two epochs, behind the words before them
    assert (second["misses"], second["hits"]) == (0, 3 * sequences)
    assert first["bytes_per_token"] == 8 * (2 + 2) + 4
    assert first["bytes"] == sequences * (LENGTH * first["bytes_per_token"] + 1)
    assert weights(tmp_path / "first") == weights(tmp_path / "second")


@pytest.mark.parametrize("cached", [True, False], ids=["kept", "nowhere"])
def test_a_student_of_kept_logits_resumes_to_the_same_bits(tmp_path: Path, teacher: Path, cached: bool) -> None:
    make = partial(stage, network=LLAMA, teacher=teacher, losses=[*DISTILLED, OUTSIDE])
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    whole = finished(straight, kept(straight, tmp_path / "own" if cached else None, make, **FEW))
    asked = json.loads((whole / "report.json").read_text())["train"]["teacher_cache"]["teacher"]["misses"]
    before = -(-asked // BATCH) if cached else 0  # what the teacher says at the start may be stopped, too
    assignment = kept(halting, tmp_path / "cache" if cached else None, make, **FEW)
    stopped = play(assignment, halting, steps=before + 2)
    saved = stopped.of(CheckpointSaved)[-1].path
    finished(halting, assignment.model_copy(update={"resume": saved}))
    assert weights(halting) == weights(straight)
