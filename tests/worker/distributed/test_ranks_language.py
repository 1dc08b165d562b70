"""Two processes distil a language model with the steps that one would have taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.worker.distributed.ranks_stage import Act, play_together, report_every_step
from tests.worker.tasks.language import DISTILLED, GPT2, LLAMA, stage
from tests.worker.training.builders import Played, finished, play
from worker.protocol import CachePlace, Finished, Metrics, Stopped
from worker.students.weights import WEIGHTS

OUTSIDE = {"kind": "akl"}
"""A divergence that has no kernel."""
SPLIT = {"batch_size": 7, "accumulate": 2, "clip_norm": 0.5}
SHARDED = {"processes": 2, "queue": "cpu", "sharding": "fsdp"}
OFF: dict[str, Any] = {"teacher_cache": {"store": "off"}}
DEEP = {**LLAMA, "num_hidden_layers": 2}
CODED = {"architecture": "transformers", "config": DEEP, "head": {"kind": "vq-logits", "codes": 24}}
CALM = {**GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
"""Without dropout, which every process draws for itself."""
CASES: dict[str, dict[str, Any]] = {
    "replicas": {"network": CALM, "losses": [*DISTILLED, OUTSIDE], "recipe": SPLIT},
    "sharded-untied": {"network": DEEP, "losses": [*DISTILLED, OUTSIDE], "recipe": SPLIT, "resources": SHARDED, **OFF},
    "sharded-codebook": {"network": DEEP, "student": CODED, "recipe": SPLIT, "resources": SHARDED, **OFF},
    "sharded-tied": {"network": CALM, "recipe": SPLIT, "resources": SHARDED, **OFF},
}
KEPT: dict[str, Any] = {"network": LLAMA, "teacher_cache": {"store": "top-k", "k": 16}, "recipe": {"epochs": 1}}


class Scene:
    """The runs of the tests: each case by one process and by two, and jobs that are resumed by other processes."""

    def __init__(self, root: Path) -> None:
        self.root, self.teacher = root, root / "teacher" / "bundle"
        finished(root / "teacher", stage(root / "teacher", GPT2))
        self.alone = {name: play(*self.act(f"{name}-alone", **case)) for name, case in CASES.items()}
        acts = {name: self.act(name, **case) for name, case in CASES.items()}
        acts["kept"] = self.act("kept", **KEPT)
        acts["half"] = self.act("half", **CASES["sharded-untied"], steps=3)
        self.begun = play(*self.act("begun", **CASES["sharded-untied"], steps=3))
        acts["begun"] = resumed(acts["half"]._replace(folder=root / "begun"))
        self.rows_per_sample = play_together(acts)
        half = resumed(acts["half"])
        self.ended = play(half.assignment, half.folder)

    def act(self, name: str, steps: int = 10**9, **changes: Any) -> Act:
        assignment = stage(self.root / name, teacher=self.teacher, **{"losses": DISTILLED, **changes})
        place = CachePlace(folder=str(self.root / "cache")) if name.startswith("kept") else None
        return Act(assignment.model_copy(update={"teacher_cache": place}), self.root / name, steps)

    def require_equal(self, name: str, other: str) -> None:
        ours, theirs = (load_file(self.root / each / "bundle" / WEIGHTS) for each in (name, other))
        assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


def resumed(act: Act) -> Act:
    return Act(act.assignment.model_copy(update={"resume": "checkpoints/step-3"}), act.folder)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with pytest.MonkeyPatch.context() as patch:
        report_every_step(patch)
        yield Scene(tmp_path_factory.mktemp("ranks"))


def curves(played: Played) -> dict[tuple[int, str], float]:
    values = {(report.step, name): value for report in played.of(Metrics) for name, value in report.values.items()}
    return {key: value for key, value in values.items() if key[1].startswith(("train/loss", "train/grad", "eval/"))}


@pytest.mark.parametrize("name", CASES)
def test_every_loss_and_metric_is_that_of_one_process(scene: Scene, name: str) -> None:
    alone, together = scene.alone[name], scene.rows_per_sample[name]
    assert isinstance(together.word, Finished), together.word
    assert isinstance(alone.word, Finished), alone.word
    assert curves(together) == pytest.approx(curves(alone), rel=1e-3, abs=1e-5)
    assert {"train/loss/kd", "eval/perplexity"} < {name for _, name in curves(together)}
    scene.require_equal(name, f"{name}-alone")


def test_one_process_resumes_a_run_of_two_and_two_a_run_of_one(scene: Scene) -> None:
    assert scene.rows_per_sample["half"].word == scene.begun.word == Stopped(step=3)
    assert isinstance(scene.ended.word, Finished), scene.ended.word
    assert isinstance(scene.rows_per_sample["begun"].word, Finished)
    scene.require_equal("half", "sharded-untied-alone")
    scene.require_equal("begun", "sharded-untied-alone")


def test_each_rank_computes_its_share_of_teacher_outputs_before_training(scene: Scene) -> None:
    kept = scene.rows_per_sample["kept"]
    assert isinstance(kept.word, Finished), kept.word
    train = json.loads((scene.root / "kept" / "bundle" / "report.json").read_text())["train"]
    figures = train["teacher_cache"]["teacher"]
    assert figures["misses"] == figures["hits"] > 0
