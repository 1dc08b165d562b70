"""Two processes take the steps that one would have taken."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from app.recipe.students.architectures import Vit
from tests import kinds
from tests.kinds import BERT, PAIRS, RELATION
from tests.worker.distributed.ranks_stage import Act, play_together, report_every_step
from tests.worker.training.builders import Played, play, stage, weights, write_teacher
from worker.protocol import CheckpointSaved, Finished, Metrics, Stopped
from worker.students.weights import WEIGHTS
from worker.training.checkpoint import CheckpointError, read_record

SPLIT = {"batch_size": 13}
"""40 samples: three batches that two processes share unequally, and one of a single sample."""
VIT = {"architecture": "vit", "patch_size": 3, "width": 8, "depth": 1, "heads": 2}
DROPPING: dict[str, Any] = {
    "architecture": "transformers",
    "config": {
        **{"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 8, "patch_size": 3, "hidden_dropout_prob": 0.5},
    },
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HINT = {"kind": "hint", "pairs": [{"teacher": "2", "student": "2"}]}
MINED = {"kind": "inp-former", "pairs": [{"teacher": "blocks.1", "student": "blocks.0"}]}
PATIENT = {"kind": "pkd", "pairs": [{"teacher": "blocks.1", "student": "blocks.0"}]}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"recipe": {**SPLIT, "optimizer": {"kind": "sgd", "lr": 0.05}}},
    "adamp": {
        "student": VIT,
        "teacher": True,
        "recipe": {**SPLIT, "accumulate": 3, "clip_norm": 0.5, "optimizer": {"kind": "adamp", "weight_decay": 0.1}},
    },
    "augmented": {
        "data": {"train": "data", "augment": [{"kind": name} for name in ("crop", "mixup")], "augment_epochs": 2},
        "teacher": True,
        "recipe": {**SPLIT, "ema_decay": 0.8},
    },
    "layers": {
        "student": {
            **{"architecture": "cifar-resnet", "depth": 8, "width": 4, "norm": {"kind": "group", "groups": 2}},
            "activation": {"kind": "silu"},
        },
        "recipe": {**SPLIT, "accumulate": 2},
    },
    "power norm": {
        "student": {**VIT, "norm": {"kind": "power", "warmup_steps": 4}},
        "recipe": {"batch_size": 14, "optimizer": {"kind": "sgd", "lr": 0.05}},
    },
    "unified norm": {
        "student": {
            "architecture": "cifar-resnet",
            "depth": 8,
            "width": 4,
            "norm": {"kind": "unified", "warmup_steps": 4, "clamp_after": 6},
        },
        "recipe": {"batch_size": 14, "optimizer": {"kind": "sgd", "lr": 0.05}},
    },
    "anyloss": {
        "data": {"train": "binary"},
        "recipe": {
            **SPLIT,
            "losses": [{"kind": "cross-entropy"}, {"kind": "anyloss", "metric": "g-mean", "amplification": 5.0}],
            "optimizer": {"kind": "sgd", "lr": 0.05},
        },
    },
    "inp-former": {
        "student": {"architecture": "pretrained", "model": "teacher"},
        "teacher": True,
        "recipe": {**SPLIT, "losses": [{"kind": "cross-entropy"}, MINED], "optimizer": {"kind": "sgd", "lr": 0.05}},
    },
    "feature-reconstruction": {
        "task": "anomaly-detection",
        "data": {"train": "data", "normal_classes": ["0", "1", "2"]},
        "student": {
            **{"architecture": "inp-former", "model": "teacher", "layers": [["blocks.0"], ["blocks.1"]]},
            **{"heads": 2, "map_size": 4},
        },
        "recipe": {
            **SPLIT,
            "losses": [{"kind": "feature-reconstruction"}, {"kind": "prototype-coherence"}],
            **{"ema_decay": 0.8, "optimizer": {"kind": "sgd", "lr": 0.05}},
        },
    },
    "aldr": {
        "recipe": {**SPLIT, "losses": [{"kind": "aldr"}], "accumulate": 2, "optimizer": {"kind": "sgd", "lr": 0.05}},
    },
    "l2-svm": {
        "student": {"architecture": "mlp", "hidden": [8], "head": {"kind": "svm"}},
        "recipe": {**SPLIT, "losses": [{"kind": "l2-svm"}], "accumulate": 2, "optimizer": {"kind": "sgd", "lr": 0.05}},
    },
    "mutual": {"recipe": {**SPLIT, "method": {"kind": "mutual"}, "ema_decay": 0.8, "accumulate": 2}},
    "online": {
        "teacher": True,
        "recipe": {
            **SPLIT,
            "losses": [{"kind": "cross-entropy"}, {"kind": "bd-kd"}],
            "method": {"kind": "online", "teacher_optimizer": {"kind": "sgd", "lr": 0.05}},
            **{"ema_decay": 0.8, "accumulate": 2},
        },
    },
    "adversarial": {
        "teachers": [{"model": "teacher", "name": name} for name in ("clean", "robust")],
        "data": {"train": "data", "augment": [{"kind": "mixup"}]},
        "recipe": {
            **SPLIT,
            "method": {"kind": "adversarial", "clean_teacher": "clean", "robust_teacher": "robust"},
            **{"losses": [{"kind": "cross-entropy"}], "ema_decay": 0.8, "accumulate": 2},
        },
    },
    "smooth-adversarial": {
        "data": {"train": "data", "augment": [{"kind": "mixup"}]},
        "recipe": {
            **{**SPLIT, "losses": [{"kind": "comp-sum", "tau": 1.5}], "ema_decay": 0.8, "accumulate": 2},
            "method": {"kind": "smooth-adversarial", "steps": 3, "step_size": 0.01},
        },
    },
    "boundary-samples": {
        "teacher": True,
        "recipe": {
            **{**SPLIT, "losses": [{"kind": "cross-entropy"}], "epochs": 6, "accumulate": 2, "ema_decay": 0.8},
            **{"optimizer": {"kind": "sgd", "lr": 0.3}},
            "method": {"kind": "boundary-samples", "attack_size": 1, "bss_weight": {"first": 2.0, "last": 1.0}},
        },
    },
    "meta": {
        "teacher": True,
        "recipe": {
            **{**SPLIT, "clip_norm": 0.5, "ema_decay": 0.8, "epochs": 4},
            "method": {"kind": "meta", "quiz_fraction": 0.25, "quiz_batch_size": 3, "quiz_batches": 2},
        },
    },
    "meta-pkd": {
        "student": {"architecture": "pretrained", "model": "teacher"},
        "teacher": True,
        "recipe": {
            **{**SPLIT, "losses": [{"kind": "cross-entropy"}, {"kind": "kd"}, PATIENT]},
            **{"optimizer": {"kind": "sgd", "lr": 0.05}, "method": {"kind": "meta", "quiz_fraction": 0.25}},
        },
    },
    "meta-difference": {
        "teacher": True,
        "recipe": {**SPLIT, "method": {"kind": "meta", "quiz_fraction": 0.25, "order": "finite-difference"}},
    },
    "hpm": {
        "task": "self-supervised",
        "data": {"train": "data", "augment": [{"kind": "resized-crop"}]},
        "student": {**VIT, "patch_size": 2},
        "embedding": {"dimensions": 5},
        "recipe": {
            **{**SPLIT, "losses": [], "ema_decay": 0.8, "clip_norm": 0.5, "optimizer": {"kind": "sgd", "lr": 0.5}},
            "method": {"kind": "hpm", "hard_share": 1.0, "decay": 0.5, "final_decay": 0.5},
        },
    },
    "rollback": {
        "student": {"architecture": "pretrained", "model": "teacher"},
        "recipe": {
            **{**SPLIT, "epochs": 1, "accumulate": 2, "ema_decay": 0.8, "optimizer": {"kind": "sgd", "lr": 0.1}},
            "method": {"kind": "rollback", "periods": 3},
        },
    },
    "supernet": {
        "task": "embedding",
        **{"data": {**PAIRS, "label_columns": []}, "student": {"architecture": "shrink"}, "teacher": True},
        "recipe": {
            **{**SPLIT, "epochs": 4, "accumulate": 2, "clip_norm": 0.5, "ema_decay": 0.8},
            "optimizer": {"kind": "sgd", "lr": 0.3},
            "losses": [RELATION],
            "method": {"kind": "supernet", "spaces": [{"layers": [0.5, 1], "width": [0.5, 1], "ffn_ratio": [0.5]}]},
        },
    },
    "stages": {
        "teacher": True,
        "recipe": {
            **SPLIT,
            "stages": [{"losses": [HINT], "epochs": 1, "trains": "terms"}, {"losses": [HINT], "epochs": 1}],
        },
    },
}
"""Among them are stages that train only the modules of a loss, and a student whose last layer has no gradient."""
NARROW: dict[str, Any] = {
    "architecture": "transformers",
    "config": {**BERT, **NO_DROPOUT},
}
"""Half as wide as its teacher: the loss trains a projection."""
SHARDED = {"resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}}
CASES |= {
    "sharded": {
        **{"student": {**VIT, "depth": 2}, "teacher": True, "teacher_cache": {"store": "off"}, **SHARDED},
        "recipe": {**SPLIT, "accumulate": 3, "clip_norm": 0.5},
    },
    "sharded-nap": {
        **{"student": VIT, **SHARDED, "evaluation": {"keep": "best"}},
        "recipe": {**SPLIT, "ema_decay": 0.8, "optimizer": {"kind": "nap", "inner": {"kind": "adamp", "lr": 0.01}}},
    },
    "sharded-swan": {"student": VIT, **SHARDED, "recipe": {**SPLIT, "optimizer": {"kind": "swan", "lr": 3e-4}}},
    "sharded-vectors": {
        **{"task": "embedding", "data": {**PAIRS, "label_columns": []}, "student": NARROW, "teacher": True, **SHARDED},
        **{"teacher_cache": {"store": "off"}},
        "recipe": {**SPLIT, "epochs": 4, "losses": [{"kind": "embedding-distance"}]},
    },
    "sharded-head": {
        "student": {"architecture": "mlp", "hidden": [8], "head": {"kind": "normalised"}},
        **SHARDED,
        "recipe": {**SPLIT, "optimizer": {"kind": "sgd", "lr": 0.05}},
    },
    "sharded-anyloss": {
        "data": {"train": "binary"},
        **SHARDED,
        "recipe": {**SPLIT, "losses": [{"kind": "cross-entropy"}, {"kind": "anyloss", "amplification": 5.0}]},
    },
    "sharded-layers": {
        "student": {**VIT, "norm": {"kind": "rms"}, "attention": {"kind": "linear"}, "activation": {"kind": "silu"}},
        **SHARDED,
        "recipe": SPLIT,
    },
    "sharded-norm": {
        "student": {**VIT, "norm": {"kind": "unified", "warmup_steps": 4}},
        **{**SHARDED, "recipe": {"batch_size": 14}},
    },
    "sharded-soft": {
        "student": {**VIT, "attention": {"kind": "soft", "ratio": 1}},
        **SHARDED,
        "recipe": {**SPLIT, "optimizer": {"kind": "sgd", "lr": 0.05}},
    },
    "nala": {"student": {**VIT, "attention": {"kind": "nala"}}, "recipe": SPLIT},
    "sharded-bf16": {
        **{"student": VIT, "teachers": [{"model": "teacher", "precision": "bf16"}], **SHARDED},
        **{"teacher_cache": {"store": "off"}, "recipe": {**SPLIT, "losses": [{"kind": "kd"}]}},
    },
    "sharded-sgd": {
        **{"student": VIT, **SHARDED},
        "recipe": {**SPLIT, "optimizer": {"kind": "sgd", "lr": 0.05, "nesterov": True}},
    },
}


class Scene:
    """The runs of the tests: each case by one process and by two, and a job that is resumed by other processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.alone = {name: self.play(f"{name}-alone", **CASES[name]) for name in CASES}
        acts = {name: self.act(name, **CASES[name]) for name in CASES}
        acts |= {"straight": self.act("straight", student=DROPPING), "half": self.act("half", 5, student=DROPPING)}
        other = self.act("half", student=DROPPING)
        acts["half-again"] = other._replace(assignment=resumed(other, "step-5"))
        self.play("one-two", 4)
        begun = self.act("one-two")
        acts["one-two"] = begun._replace(assignment=resumed(begun, "step-4"))
        acts["two-one"] = self.act("two-one", 4)
        acts["sharded-half"] = self.act("sharded-half", 4, **CASES["sharded"])
        half = self.act("sharded-half", **CASES["sharded"])
        acts["sharded-again"] = half._replace(assignment=resumed(half, "step-4"))
        acts |= {name: self.act(name, 4, **CASES["sharded"]) for name in ("sharded-one", "sharded-three")}
        self.play("one-sharded", 4, **CASES["sharded"])
        begun = self.act("one-sharded", **CASES["sharded"])
        acts["one-sharded"] = begun._replace(assignment=resumed(begun, "step-4"))
        self.rows_per_sample = play_together(acts)
        more = acts["sharded-three"]
        again = {"sharded-three": Act(resumed(more, "step-4"), more.folder)}
        self.more = play_together(again, size=3)["sharded-three"]
        ended = self.act("sharded-one", **{**CASES["sharded"], "resources": {}})
        self.unsharded = play(resumed(ended, "step-4"), ended.folder)
        self.straight = self.play("one")
        ended = self.act("two-one")
        self.ended = play(resumed(ended, "step-4"), ended.folder)

    def act(self, name: str, steps: int = 10**9, **changes: Any) -> Act:
        folder = self.root / name
        assignment = stage(folder, **changes)
        if assignment.spec.student.architecture in ("pretrained", "inp-former"):
            write_teacher(folder / "teacher", Vit(patch_size=3, width=8, depth=2, heads=2))
        if changes.get("task") == "embedding":
            kinds.write_data(folder)
            kinds.write_encoder(folder / "encoder", **NO_DROPOUT)
            assignment = assignment.model_copy(update={"inputs": {"pairs": "pairs", "teacher": "encoder"}})
        return Act(assignment, folder, steps)

    def play(self, name: str, steps: int = 10**9, **changes: Any) -> Played:
        return play(*self.act(name, steps, **changes))

    def weights(self, name: str) -> dict[str, Tensor]:
        return load_file(self.root / name / "bundle" / WEIGHTS)


def resumed(act: Act, checkpoint: str) -> Any:
    return act.assignment.model_copy(update={"resume": f"checkpoints/{checkpoint}"})


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with pytest.MonkeyPatch.context() as patch:
        report_every_step(patch)
        yield Scene(tmp_path_factory.mktemp("ranks"))


def curves(played: Played) -> dict[tuple[int, str], float]:
    """All metrics but the machine's rate and the teachers' operations, which are the first rank's times the ranks."""
    values = {(report.step, name): value for report in played.of(Metrics) for name, value in report.values.items()}
    return {key: value for key, value in values.items() if not key[1].startswith(("train/mfu/", "train/flops/teacher"))}


@pytest.mark.parametrize("name", CASES)
def test_every_loss_and_metric_is_that_of_one_process(scene: Scene, name: str) -> None:
    alone, together = scene.alone[name], scene.rows_per_sample[name]
    assert isinstance(together.word, Finished), together.word
    assert isinstance(alone.word, Finished)
    assert together.word.step == alone.word.step > 6
    assert curves(together) == pytest.approx(curves(alone), rel=1e-4, abs=1e-6)
    # the bias of an attention's keys has no gradient but what rounding leaves, which Adam blows up
    assert_close(scene.weights(name), scene.weights(f"{name}-alone"), rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_bit_equal_with_the_same_dropout(scene: Scene) -> None:
    assert scene.rows_per_sample["half"].word == Stopped(step=5)
    assert isinstance(scene.rows_per_sample["half-again"].word, Finished)
    assert weights(scene.root / "half") == weights(scene.root / "straight")


def test_one_process_resumes_a_run_of_two_and_two_a_run_of_one(scene: Scene) -> None:
    stopped = scene.rows_per_sample["two-one"]
    assert [saved.step for saved in stopped.of(CheckpointSaved)] == [4]
    assert isinstance(scene.ended.word, Finished)
    assert isinstance(scene.rows_per_sample["one-two"].word, Finished)
    assert_close(scene.weights("two-one"), scene.weights("one"), rtol=1e-4, atol=1e-6)
    assert_close(scene.weights("one-two"), scene.weights("one"), rtol=1e-4, atol=1e-6)


def test_divided_weights_are_resumed_by_any_number_of_processes(scene: Scene) -> None:
    assert scene.rows_per_sample["sharded-half"].word == Stopped(step=4)
    assert isinstance(scene.rows_per_sample["sharded-again"].word, Finished)
    assert weights(scene.root / "sharded-half") == weights(scene.root / "sharded")
    assert isinstance(scene.unsharded.word, Finished)
    assert isinstance(scene.rows_per_sample["one-sharded"].word, Finished)
    assert isinstance(scene.more.word, Finished)
    for name in ("sharded-one", "one-sharded", "sharded-three"):
        assert_close(scene.weights(name), scene.weights("sharded"), rtol=1e-4, atol=1e-5)


def test_each_process_saves_its_rows_alone(scene: Scene) -> None:
    folder = scene.root / "sharded-half" / "checkpoints" / "step-4"
    first, second = (load_file(folder / name) for name in ("state.safetensors", "state-1.safetensors"))
    whole = load_file(scene.root / "one-sharded" / "checkpoints" / "step-4" / "state.safetensors")
    assert any(name.startswith("optimizer/") for name in second)
    for name, tensor in whole.items():
        parts = [part[name] for part in (first, second) if name in part]
        assert torch.cat(parts).shape == tensor.shape if tensor.ndim else len(parts) == 1
        assert len(parts) == 2 or not name.startswith("student/") or len(tensor) == 1


@pytest.mark.parametrize("name", ["state.safetensors", "state-1.safetensors"])
def test_a_part_that_is_damaged_or_missing_spoils_the_checkpoint(scene: Scene, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(scene.root / "sharded-half" / "checkpoints" / "step-4", tmp_path / "step-4")
    assert read_record(folder).step == 4
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_record(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError):
        read_record(folder)
