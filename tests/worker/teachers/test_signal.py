"""What a teacher says."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.worker.trainer.builders import SIDE, write_teacher
from worker.students.weights import load_model
from worker.teachers import load_teacher

IMAGES = torch.randint(0, 256, (4, 1, SIDE, SIDE), dtype=torch.uint8)


def test_a_teacher_says_the_logits_of_its_model_without_gradient(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    signal = load_teacher(tmp_path)(IMAGES)
    assert torch.equal(signal.logits, load_model(tmp_path)(IMAGES))
    assert not signal.logits.requires_grad


def test_a_students_backward_pass_may_use_the_signal(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    weight = torch.ones((), requires_grad=True)
    (weight * load_teacher(tmp_path)(IMAGES).logits).sum().backward()  # an inference tensor would be refused here
    assert weight.grad is not None


def test_a_teacher_shows_the_weight_of_its_last_layer(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    teacher = load_teacher(tmp_path)
    head = teacher(IMAGES).head
    assert head is not None
    assert not head.requires_grad
    before = teacher(IMAGES).logits
    with torch.no_grad():
        head.zero_()
    assert before.std() > 0.0
    assert torch.equal(teacher(IMAGES).logits, teacher(IMAGES.flip(0)).logits)  # all that is left is the bias
