"""Students that learn from what they or their teachers write."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.trainer.builders import Played, finished, play, require_same_bits, weights
from tests.worker.trainer.language import CHATS, DISTILLED, GPT2, LENGTH, LLAMA, Document, can_talk, stage
from worker.data.randomness import derive_seed
from worker.protocol import Assignment, CachePlace, CheckpointSaved, Failed, Finished, Log, Metrics, Stopped
from worker.students.measure import reading
from worker.students.model import Model
from worker.students.weights import load_model, read_config
from worker.trainer.state import fresh_student
from worker.trainer.writing import Manner, next_logits

BEGIN, MOST, SEED = 4, 8, 1
ON_POLICY: Document = {"kind": "on-policy", "share": 0.5, "prompt_tokens": BEGIN, "new_tokens": MOST}
ALWAYS: Document = {**ON_POLICY, "share": 1.0}
SEQUENCES: Document = {"kind": "sequence-level", "prompt_tokens": BEGIN, "new_tokens": MOST}
JUDGED: list[Document] = [{"kind": "jsd", "weight": 0.5}, {"kind": "reverse-kl", "temperature": 2.0}]
FEW: Document = {"store": "top-k", "k": 8, "dtype": "fp16"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a teacher that learned from the texts."""
    folder = tmp_path_factory.mktemp("written") / "teacher"
    return finished(folder, stage(folder, GPT2, recipe={"epochs": 4}))


def job(
    folder: Path, teacher: Path, generation: Document | None, losses: list[Document] | None = None, **more: Any
) -> Assignment:
    recipe = {"generation": generation, **more.pop("recipe", {})}
    return stage(folder, LLAMA, teacher, losses or DISTILLED, recipe=recipe, **more)


def ran(folder: Path, assignment: Assignment) -> Played:
    played = play(assignment, folder)
    assert isinstance(played.word, Finished), played.word
    return played


def told(played: Played, name: str) -> list[float]:
    return [metrics.values[name] for metrics in played.of(Metrics) if name in metrics.values]


def report(folder: Path) -> Any:
    return json.loads((folder / "bundle" / "report.json").read_text())


@pytest.mark.parametrize("generation", [ON_POLICY, {**SEQUENCES, "share": 0.5, "top_k": None}], ids=["own", "taught"])
def test_a_job_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path, teacher: Path, generation: Document) -> None:
    require_same_bits(partial(job, teacher=teacher, generation=generation), tmp_path)
    for folder in (tmp_path / "straight", tmp_path / "halting"):
        assert 0 < report(folder)["train"]["written"]["steps"] < report(folder)["train"]["steps"]


@pytest.mark.parametrize("kind", ["on-policy", "sequence-level"])
def test_a_share_of_nothing_leaves_the_job_as_it_is(tmp_path: Path, teacher: Path, kind: str) -> None:
    for name, generation in (("plain", None), ("none", {"kind": kind, "share": 0.0, "new_tokens": MOST})):
        ran(tmp_path / name, job(tmp_path / name, teacher, generation, data={"max_length": 24}))
    assert weights(tmp_path / "none") == weights(tmp_path / "plain")


def test_the_loss_is_the_teacher_s_divergence_at_what_the_student_wrote(tmp_path: Path, teacher: Path) -> None:
    """All of it computed again: prompts, draws without any memory, and the divergences of whole rows of logits."""
    folder, steps = tmp_path / "job", {"max_steps": 1, "batch_size": 64}
    played = ran(folder, job(folder, teacher, ALWAYS, JUDGED, recipe=steps))
    student, taught = fresh_student(read_config(folder / "bundle"), SEED).eval(), load_model(teacher).eval()
    prompts = prompts_of(folder, teacher)
    texts = drawn(student, prompts, derive_seed(SEED, "writing", "student", 0, 0))
    with torch.no_grad():
        q, p = (model(texts[:, :-1])[:, BEGIN - 1 :].double() for model in (student, taught))
    q, p = q.flatten(0, 1), p.flatten(0, 1)[:, : q.shape[-1]]
    first, second = (logits.softmax(-1) for logits in (p, q))
    mean = (first + second) / 2
    jsd = 0.5 * divergence(first, mean) + 0.5 * divergence(second, mean)
    reverse = divergence((q / 2).softmax(-1), (p / 2).softmax(-1))
    assert told(played, "train/loss/jsd")[0] == pytest.approx(float(jsd), rel=1e-4)
    assert told(played, "train/loss/reverse-kl")[0] == pytest.approx(float(reverse), rel=1e-4)
    assert told(played, "train/loss")[0] == pytest.approx(0.5 * float(jsd) + float(reverse), rel=1e-4)
    assert told(played, "train/written_tokens") == [MOST]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), the mean of all rows."""
    return (p * (p.log() - q.log())).sum(-1).mean()


def drawn(student: Model, texts: Tensor, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(MOST):
        with torch.no_grad():
            chosen = Manner(1.0, None).choose(next_logits(student, texts), draw)
        texts = torch.cat((texts, chosen.unsqueeze(1)), 1)
    return texts
