"""Outputs of a teacher run in this process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from app.recipe.losses.taps import Tap
from tests.worker.training.builders import SIDE, write_teacher
from worker.data.batches import Batch, whole_split
from worker.students.recorder import Recorder
from worker.students.weights import load_model
from worker.teachers import InProcessTeacher

IMAGES = torch.randint(0, 256, (4, 1, SIDE, SIDE), dtype=torch.uint8)


def batch(images: Tensor = IMAGES) -> Batch:
    return whole_split({"images": images}, torch.zeros(4, dtype=torch.int64))


def test_a_teacher_returns_the_logits_of_its_model_without_gradient(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    signal = InProcessTeacher(load_model(tmp_path))(batch())
    assert torch.equal(signal.logits, load_model(tmp_path)(IMAGES))
    assert not signal.logits.requires_grad


def test_a_students_backward_pass_may_use_the_signal(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    weight = torch.ones((), requires_grad=True)
    signal = InProcessTeacher(load_model(tmp_path))(batch())
    (weight * signal.logits).sum().backward()  # an inference tensor would be refused here
    assert weight.grad is not None


def test_a_teacher_shows_the_weight_of_its_last_layer(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    teacher = InProcessTeacher(load_model(tmp_path))
    head = teacher(batch()).head
    assert head is not None
    assert not head.requires_grad
    before = teacher(batch()).logits
    with torch.no_grad():
        head.zero_()
    assert before.std() > 0.0
    assert torch.equal(teacher(batch()).logits, teacher(batch(IMAGES.flip(0))).logits)  # all that is left is the bias


def test_a_teacher_shows_its_activations_without_gradient(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    model = load_model(tmp_path)
    before, after = Tap(path="1", at="output"), Tap(path="2", at="input")
    signal = InProcessTeacher(model, Recorder(model.network, [before, after]))(batch())
    assert torch.equal(signal.features[before], model.network[:2](model.preprocess(IMAGES)))
    assert torch.equal(signal.features[before], signal.features[after])
    assert not signal.features[before].requires_grad
    assert not signal.features[before].is_inference()
