"""The texts of labels, which a dual encoder encodes in training."""

from __future__ import annotations

import torch

from app.recipe.job import JobSpec
from app.recipe.plan import LABEL_PASSES
from app.recipe.students.architectures import DualEncoder
from app.recipe.students.model import ModelConfig, TextInput
from worker.data.formats.columns import TextSamples
from worker.data.formats.faults import shown
from worker.data.task_data import TaskData
from worker.errors import UserError
from worker.students.dual_encoder import DualEncoderNetwork, encoder_config
from worker.students.measure import network_cost
from worker.students.model import Model


def read_label_texts(student: Model, job: JobSpec, data: TaskData) -> None:
    """Give a dual encoder the texts of the labels, in place; any other student is not changed. Raises UserError
    (`invalid_job`) for labels without names, and for texts of labels that are none."""
    network = student.network
    if not isinstance(network, DualEncoderNetwork):
        return
    assert isinstance(job.student, DualEncoder)  # no other student has such a network
    assert isinstance(student.config.input, TextInput)
    assert data.readers is not None
    texts = _texts(job.student, student.config)
    encoded = data.readers.student.encode(TextSamples(texts), student.config.input.length)
    network.read_labels(encoded.ids, student.config.input.pad)


def _texts(student: DualEncoder, config: ModelConfig) -> list[str]:
    """The text of each class."""
    names, texts = config.class_names, student.label_texts
    if names is None:
        found = f"is missing, the labels have numbers alone, and a {student.architecture} encodes their names"
        raise UserError("invalid_job", f"data.class_order {found}; accepted: their names", "data.class_order")
    if wrong := next((name for name in texts if name not in set(names)), None):
        found = f"names {shown(wrong)}, which is no label of data.train"
        raise UserError("invalid_job", f"student.label_texts {found}; accepted: its labels", "student.label_texts")
    return [texts.get(name, name) for name in names]


def store_label_texts(student: Model) -> None:
    """Replace the texts of the labels by their vectors, in place; a student without texts of labels is not changed."""
    if isinstance(student.network, DualEncoderNetwork):
        student.eval()
        with torch.no_grad():
            student.network.store_labels()


def label_flops(student: Model) -> int:
    """Floating-point operations of encoding all labels in a forward and a backward pass, by their mean length; 0: the
    student encodes none."""
    network, config = student.network, student.config
    if not isinstance(network, DualEncoderNetwork) or network.label_tokens is None:
        return 0
    assert isinstance(config.input, TextInput)
    tokens = int((network.label_tokens != config.input.pad).sum()) / len(network.label_tokens)
    sample = config.input.model_copy(update={"length": max(1, round(tokens))})
    one = network_cost(encoder_config(config.model_copy(update={"input": sample})))
    return LABEL_PASSES * len(network.label_tokens) * one.flops
