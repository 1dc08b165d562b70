"""Features of a model's layers for raw samples.

n samples, D channels or numbers of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from app.recipe.losses.taps import Tap
from app.recipe.plan import EVAL_BATCH
from worker.data.batches import Batch
from worker.diagnostics.base import NotComputable
from worker.losses.base import target_column
from worker.students.model import Model, last_layer
from worker.students.recorder import Recorder
from worker.tasks.prediction import evaluating
from worker.tensors import at_least_float32

STAGES = ("stages", "blocks", "layers", "layer", "h")
"""Names, in the networks of this service and of the libraries, of the list of a network's stages or blocks."""
Features = Callable[[Tensor], list[Tensor]]
"""From raw samples on the model's device to the features (n, D) float32 of each layer there."""


def last_tap(model: Model) -> Tap:
    """The inputs of the last linear layer, or of a codebook; raises `NotComputable` if the network has none."""
    layer = last_layer(model) or model.codebook
    if layer is None:
        raise NotComputable("a network has no last linear layer, whose inputs are its features")
    return Tap(path=next(name for name, module in model.network.named_modules() if module is layer), at="input")


def layer_taps(model: Model, sample: Tensor) -> list[Tap]:
    """The outputs of the stages or blocks of a network, as far as it has such, and the inputs of its last layer;
    `sample` is a raw batch on its device."""
    recorder = Recorder(model.network, [*_stages(model.network), last_tap(model)])
    try:
        with evaluating(model):
            model(sample)
        return recorder.seen()
    finally:
        recorder.close()


def _stages(network: nn.Module) -> list[Tap]:
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in STAGES and isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            return [Tap(path=f"{name}.{number}") for number, _ in module.named_children()]
    return []


@contextmanager
def reading_features(model: Model, taps: Sequence[Tap]) -> Iterator[Features]:
    """A function for the features at `taps`, in evaluation mode and full float32; gradients can be computed within
    `torch.enable_grad`. Afterwards the model is as before."""
    recorder = Recorder(model.network, taps)

    def features(samples: Tensor) -> list[Tensor]:
        model(samples)
        found, counted = recorder.take(), model.tokens(samples)
        return [pooled(found[tap], counted) for tap in taps]

    try:
        with evaluating(model, differentiable=True):
            yield features
    finally:
        recorder.close()


def pooled(activations: Tensor, counted: Tensor | None = None) -> Tensor:
    """Means (n, D), of at least float32, of floating activations: (n, D) as they are, (n, S, D) over tokens, or those
    that are `counted` (n, S) bool, (n, D, H, W) over positions."""
    values = at_least_float32(activations)
    if values.ndim == 3 and counted is not None and counted.shape == values.shape[:2]:
        share = counted.to(values.dtype) / counted.sum(1, keepdim=True).clamp(min=1)
        return (values * share.unsqueeze(-1)).sum(1)
    if values.ndim == 3:
        return values.mean(1)
    return values.flatten(2).mean(2) if values.ndim > 3 else values


def batches_of(model: Model, samples: Batch, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Raw samples on `device`, a batch at a time, and their classes (n,) int64 on the CPU."""
    for batch in samples.parts(EVAL_BATCH):
        yield batch.inputs[model.input_key].to(device), target_column(batch.targets).squeeze(-1).cpu()


class LabelledFeatures(NamedTuple):
    """Features of samples, and their classes; both are on the CPU."""

    features: Tensor
    """(n, D) float32."""
    labels: Tensor
    """(n,) int64."""

    def take(self, chosen: Tensor) -> LabelledFeatures:
        """Those of the samples at `chosen` (m,) int64."""
        return LabelledFeatures(self.features[chosen], self.labels[chosen])


def last_features(model: Model, samples: Batch, device: torch.device) -> LabelledFeatures:
    """Inputs of the last layer for all samples; raises `NotComputable` if there is no such layer, or if they are not
    finite."""
    found, labels = [], []
    with reading_features(model, [last_tap(model)]) as features:
        for batch, classes in batches_of(model, samples, device):
            found.append(features(batch)[0].cpu())
            labels.append(classes)
    whole = torch.cat(found)
    if not bool(whole.isfinite().all()):
        raise NotComputable("features of a network are not finite")
    return LabelledFeatures(whole, torch.cat(labels))
