"""The labels of a dual encoder: encoded from their texts in training, and stored as vectors after it."""

from __future__ import annotations

import torch

from app.recipe.job import JobSpec
from app.recipe.plan import LABEL_PASSES
from app.recipe.students.architectures import DualEncoder
from app.recipe.students.model import TextInput
from worker.data.task_data import TaskData
from worker.students.dual_encoder import DualEncoderNetwork, encoder_config
from worker.students.measure import network_cost
from worker.students.model import Model


def read_labels(student: Model, data: TaskData) -> None:
    """Give a dual encoder the texts of the labels, in place; any other student is not changed."""
    if isinstance(student.network, DualEncoderNetwork):
        assert data.label_tokens is not None
        assert isinstance(student.config.input, TextInput)
        student.network.read_labels(data.label_tokens, student.config.input.pad)


def store_labels(student: Model) -> None:
    """Replace the texts of a dual encoder's labels by their vectors, in place; any other student is not changed."""
    if isinstance(student.network, DualEncoderNetwork):
        student.eval()
        with torch.no_grad():
            student.network.store_labels()


def label_flops(student: Model, job: JobSpec) -> int:
    """Floating-point operations of encoding the labels of a step in a forward and a backward pass, by the mean length
    of all; 0: the student encodes none."""
    network, config = student.network, student.config
    if not isinstance(network, DualEncoderNetwork) or network.label_tokens is None:
        return 0
    assert isinstance(config.input, TextInput)
    tokens = int((network.label_tokens != config.input.pad).sum()) / len(network.label_tokens)
    sample = config.input.model_copy(update={"length": max(1, round(tokens))})
    one = network_cost(encoder_config(config.model_copy(update={"input": sample})))
    given = job.student.labels_per_step if isinstance(job.student, DualEncoder) else None
    count = len(network.label_tokens)
    return LABEL_PASSES * min(count, given or count) * one.flops
