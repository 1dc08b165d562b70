"""Steps with some of the labels: which these are, and that their losses are those of all labels restricted to them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from app.recipe.plan import LABEL_PASSES
from tests.worker.live_memory import peak_bytes
from tests.worker.students.test_dual_encoder import LABELS, TEXTS, gradients, network_of
from tests.worker.tasks.test_dual_encoder import CALM, NAMES, document, stage, state
from tests.worker.training.builders import finished, require_same_bits
from worker.data import label_sets
from worker.data.batches import Batch
from worker.outputs import TeacherSignal
from worker.students import dual_encoder
from worker.students.dual_encoder import DualEncoderNetwork, encoder_config
from worker.students.measure import network_cost
from worker.students.weights import load_model
from worker.tasks import multi_label
from worker.tensors import IGNORED
from worker.training.label_sample import LabelSample, of_labels, present

DENSE = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
LISTED = torch.tensor([[1, IGNORED], [3, IGNORED], [1, IGNORED]], dtype=torch.int32)
RECIPE: dict[str, Any] = {"losses": [{"kind": "dexml"}, {"kind": "binary-cross-entropy"}]}


def network() -> DualEncoderNetwork:
    """With the same weights, and the same draws after it."""
    made = network_of()
    made.read_labels(LABELS, pad=0)
    return made.train()


def batch(targets: torch.Tensor) -> Batch:
    return Batch({"tokens": TEXTS}, targets, torch.arange(3))


@pytest.mark.parametrize("targets", [DENSE, LISTED])
@pytest.mark.parametrize(("count", "size"), [(2, 2), (3, 3), (4, 4), (5, 5), (9, 5), (1, 2)])
def test_labels_of_the_batch_are_in_and_others_are_drawn(targets: torch.Tensor, count: int, size: int) -> None:
    made = network()
    drawn = [made.choose_labels(present(targets), count) for _ in range(20)]
    assert all(len(each) == len(each.unique()) == size for each in drawn)
    assert all({1, 3} <= set(each.tolist()) for each in drawn)
    assert all(torch.equal(each, each.sort().values) for each in drawn)
    others = {number for each in drawn for number in each.tolist()} - {1, 3}
    assert others == ({0, 2, 4} if size > 2 else set())


@pytest.mark.parametrize("at_once", [1, 2, 256])
def test_logits_and_gradients_are_those_of_all_labels_at_the_chosen_ones(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(dual_encoder, "LABELS_AT_ONCE", at_once)
    made = network()
    chosen = made.choose_labels(torch.tensor([1, 3]), 4)
    found, expected = made(TEXTS), made(TEXTS)[:, chosen]
    assert found.shape == (3, 4)
    torch.testing.assert_close(found, expected)
    for ours, plain in zip(gradients(made, found), gradients(made, expected), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_targets_and_teachers_are_restricted_to_the_same_labels() -> None:
    taught = torch.randn(3, 5)
    for targets in (DENSE, LISTED):
        given, signals = LabelSample(network(), 4)(batch(targets), {"teacher": TeacherSignal(taught)})
        chosen = network().choose_labels(present(targets), 4)
        expected = (DENSE > 0).float() if targets is LISTED else DENSE
        assert torch.equal(given.targets, expected[:, chosen])
        assert torch.equal(signals["teacher"].logits, taught[:, chosen])


def test_a_batch_without_labels_has_drawn_ones() -> None:
    nothing = torch.full((3, 2), IGNORED, dtype=torch.int32)
    chosen = network().choose_labels(present(nothing), 3)
    assert len(chosen) == 3
    assert not of_labels(nothing, chosen, 5).any()


def test_in_evaluation_all_labels_are_there() -> None:
    made = network()
    made.choose_labels(torch.tensor([1]), 2)
    assert made.eval()(TEXTS).shape == (3, 5)


def test_memory_is_that_of_the_chosen_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual_encoder, "LABELS_AT_ONCE", 16)

    def peak(labels: int, count: int | None) -> int:
        made = network_of(labels)
        made.read_labels(torch.randint(1, 50, (labels, 8)), pad=0)
        made.train()
        if count is not None:
            made.choose_labels(torch.arange(8), count)
        return peak_bytes(lambda: gradients(made, made(TEXTS)))

    assert peak(4096, 64) < 1.5 * peak(64, None)
    assert peak(4096, None) > 3 * peak(4096, 64)


def sampled(folder: Path, count: int = 4, **changes: Any) -> Any:
    return stage(folder, student={**CALM, "labels_per_step": count}, **{"recipe": RECIPE, **changes})


@pytest.mark.parametrize("listed", [False, True])
def test_a_student_learns_from_some_labels_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    if listed:
        for module in (label_sets, multi_label):
            monkeypatch.setattr(module, "MANY_LABELS", 5)
    recipe = {**RECIPE, "epochs": 8, "batch_size": 4, "optimizer": {"kind": "adamw", "lr": 0.01}}
    bundle = finished(tmp_path / "learned", sampled(tmp_path / "learned", recipe=recipe, data={"eval": "texts"}))
    report = json.loads((bundle / "report.json").read_text())
    assert report["student"]["precision_at_1"] > 0.9
    assert state(bundle)["labels"].shape[0] == len(NAMES)
    assert "labels_per_step" not in json.loads((bundle / "config.json").read_text())["architecture"]
    require_same_bits(partial(sampled, recipe={**RECIPE, "epochs": 2}), tmp_path)


def test_as_many_as_there_are_is_training_with_all(tmp_path: Path) -> None:
    whole = state(finished(tmp_path / "whole", stage(tmp_path / "whole", student=CALM, recipe=RECIPE)))
    given = state(finished(tmp_path / "given", sampled(tmp_path / "given", len(NAMES))))
    for name, each in whole.items():
        torch.testing.assert_close(given[name], each, rtol=1e-4, atol=1e-5, msg=name)


def test_the_operations_of_the_encoded_labels_are_counted(tmp_path: Path) -> None:
    bundle = finished(tmp_path, sampled(tmp_path, data={"eval": "texts"}))
    train, config = json.loads((bundle / "report.json").read_text())["train"], load_model(bundle).config
    of_three_tokens = config.model_copy(update={"input": config.input.model_copy(update={"length": 3})})
    label = network_cost(encoder_config(of_three_tokens)).flops
    of_samples = 3 * network_cost(config).flops * 80 * document(recipe=RECIPE)["recipe"]["epochs"]
    assert train["student_flops"] == of_samples + LABEL_PASSES * 4 * label * train["steps"]


def test_a_teacher_teaches_the_chosen_labels(tmp_path: Path) -> None:
    teacher = finished(tmp_path / "teacher", stage(tmp_path / "teacher", student=CALM))
    losses = {"losses": [{"kind": "binary-kd"}, {"kind": "logit-mse"}], "epochs": 1}
    finished(tmp_path / "job", sampled(tmp_path / "job", recipe=losses, teacher=teacher))
