"""Last layers that are computed after the last step, from features or from the texts of labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from app.recipe.plan import EVAL_BATCH
from app.recipe.students.architectures import BuiltIn, DualEncoder
from app.recipe.students.model import ModelConfig
from app.recipe.students.quantisation import Binary
from worker.data.batches import Batch
from worker.errors import UserError
from worker.losses.base import target_column
from worker.students.heads import nb_diag
from worker.students.model import Model, last_layer
from worker.students.quantisers.binary import fit_factors
from worker.training.dual_encoder import store_labels

CALIBRATION = 1024
"""Training samples whose activations set the thresholds of spiking neurons."""


def require_every_class(config: ModelConfig, samples: Batch) -> None:
    """Raise UserError (`invalid_data`) if the student's head needs a mean of every class, and one has no training
    sample."""
    spec = nb_diag.spec_of(config.architecture)
    if spec is None:
        return
    labels = target_column(samples.targets).squeeze(-1)
    missing = (labels.bincount(minlength=config.outputs) == 0).nonzero().flatten().tolist()
    if missing:
        names = config.class_names or list(map(str, range(config.outputs)))
        found = f"has no sample of class {names[missing[0]]!r}, whose mean student.head {spec.kind} needs"
        raise UserError("invalid_data", f"data.train {found}; accepted: samples of every class", "data.train")


def fit_head(config: ModelConfig, student: Callable[[], Model], samples: Batch) -> None:
    """Compute the student's head from the training `samples`, as they are, if it is of such a kind, and the vectors of
    labels from their texts. `student` is called in these cases alone, since sharded weights are gathered for it."""
    spec = nb_diag.spec_of(config.architecture)
    if isinstance(config.architecture, DualEncoder):
        store_labels(student())
    if spec is None:
        return
    model = student()
    layer = last_layer(model)
    assert layer is not None  # every network of the zoo ends in one
    nb_diag.fit(layer, _features(model, layer, samples), spec.smoothing)


def fit_thresholds(config: ModelConfig, student: Callable[[], Model], samples: Batch) -> None:
    """Compute the scales of the activations of a student with binary weights from the first training `samples`, as they
    are."""
    network = config.architecture
    if not isinstance(network, BuiltIn) or not isinstance(network.quantise, Binary):
        return
    model = student()
    first = samples.between(0, min(CALIBRATION, samples.samples)).inputs[model.input_key]
    was_training = model.training
    fit_factors(model.eval(), first.to(next(model.parameters()).device), network.quantise.percentile)
    model.train(was_training)


def _features(student: Model, layer: torch.nn.Linear, samples: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of the last layer (n, D), float32, and labels (n,) int64, a batch at a time."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float()))
    was_training, device = student.training, layer.weight.device
    student.eval()
    try:
        with torch.no_grad():
            for batch in samples.parts(EVAL_BATCH):
                student(batch.inputs[student.input_key].to(device))
                yield found.pop(), target_column(batch.targets).squeeze(-1)
    finally:
        handle.remove()
        student.train(was_training)
