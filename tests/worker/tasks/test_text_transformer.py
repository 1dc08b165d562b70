"""Jobs of the built-in encoder of texts: trained, resumed, taught by and teaching others, and started from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from app.recipe.checks import InputFacts, find_problems
from app.recipe.job import JobSpec
from tests.worker.tasks.test_texts import DISTILLED, TEACHER, stage
from tests.worker.training.builders import finished, play, require_same_bits
from worker.data.tokens import load_tokenizer
from worker.protocol import Failed
from worker.students.weights import load_model

LABELLED: dict[str, Any] = {"label_columns": ["verdict"]}
NETWORK = {"architecture": "transformer", "width": 16, "depth": 1, "heads": 2, "attention": {"kind": "softplus"}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformer") / "teacher"
    return finished(folder, stage(folder, TEACHER, student=NETWORK))


def test_a_student_of_one_resumes_to_the_same_bits(tmp_path: Path, teacher: Path) -> None:
    require_same_bits(partial(stage, network=TEACHER, teacher=teacher, losses=DISTILLED, student=NETWORK), tmp_path)


def test_its_bundle_has_its_tokenizer_and_it_can_be_trained_further(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    pretrained = {"architecture": "pretrained", "model": "teacher"}
    slow = {"optimizer": {"kind": "adamw", "lr": 1e-9}, "losses": DISTILLED, "epochs": 1}
    bundle = finished(folder, stage(folder, TEACHER, teacher, student=pretrained, recipe={"batch_size": 16, **slow}))
    assert load_tokenizer(bundle, "").digest == load_tokenizer(teacher, "").digest
    ours, theirs = load_model(bundle), load_model(teacher)
    tokens = torch.randint(5, 60, (4, 9))
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "changes", "param"),
    [
        ("text-classification", {"attention": {"kind": "soft"}}, "student.attention.kind"),
        ("text-classification", {"attention": {"kind": "nala"}}, "student.attention.kind"),
        ("text-classification", {"heads": 3}, "student.heads"),
        ("causal-lm", {}, "student.architecture"),
        ("token-classification", {}, "student.architecture"),
        ("embedding", {}, "student.architecture"),
        ("image-classification", {}, "student.architecture"),
    ],
)
def test_what_it_is_not_for_is_refused_with_its_field(task: str, changes: dict[str, Any], param: str) -> None:
    data: dict[str, Any] = {"train": "file_a"}
    if task != "image-classification":
        data |= {"format": "csv", "input_columns": ["text"]} | ({} if task == "causal-lm" else LABELLED)
    losses = [{"kind": "pair-score" if task == "embedding" else "cross-entropy"}]
    document = {"task": task, "data": data, "student": {**NETWORK, **changes}, "recipe": {"losses": losses}}
    found = [each.param for each in find_problems(JobSpec.model_validate(document), InputFacts())]
    assert param in found


def test_it_can_not_be_shrunk(tmp_path: Path, teacher: Path) -> None:
    folder, shrunk = tmp_path / "student", {"architecture": "shrink", "layers": 1}
    word = play(stage(folder, TEACHER, teacher, student=shrunk, losses=DISTILLED), folder).word
    assert isinstance(word, Failed)
    assert "a teacher of type transformer can't be shrunk" in word.message
