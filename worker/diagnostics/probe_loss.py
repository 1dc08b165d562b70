"""Loss of a classifier on fixed samples, as a function of its weights.

P weights in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from app.recipe.plan import EVAL_BATCH
from worker.data.batches import Batch
from worker.diagnostics.base import NotComputable
from worker.students.model import Model
from worker.tasks.prediction import evaluating
from worker.tensors import IGNORED, at_least_float32

Samples = Sequence[tuple[Tensor, Tensor]]
"""Batches of raw samples (n, ...), and classes (n,) or (n, S) int64, on the network's device."""

NO_CURVATURE = "a layer of a network has no second derivative"


class ProbeLoss:
    """Mean cross-entropy over all classes that aren't ignored, at any weights; those of the network stay as they are.

    Weights and directions are vectors (P,), in the order of the network's parameters.
    """

    def __init__(self, network: nn.Module, samples: Samples) -> None:
        self._network, self._samples = network, samples
        named = dict(network.named_parameters())
        self._names = list(named)
        self.tensors = [parameter.detach() for parameter in named.values()]
        self._checked = False
        self._first_order = any(getattr(module, "first_order_only", False) for module in network.modules())
        self._count = sum(int((labels != IGNORED).sum()) for _, labels in samples)

    @property
    def weights(self) -> Tensor:
        """The network's weights (P,)."""
        return self.join(self.tensors)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The vector (P,) of parts in the shapes of the parameters."""
        return torch.cat([part.flatten() for part in parts])

    def split(self, vector: Tensor) -> list[Tensor]:
        """The parts of a vector (P,) in the shapes of the parameters."""
        parts = torch.split(vector, [tensor.numel() for tensor in self.tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, self.tensors, strict=True)]

    def at(self, weights: Tensor) -> float:
        """The loss at weights (P,)."""
        with torch.no_grad():
            parts = self.split(weights)
            return sum(float(self._loss(parts, *batch).double()) for batch in self._samples)

    def product(self, vector: Tensor) -> Tensor:
        """The product (P,) of the loss's Hessian at the network's weights with a vector (P,)."""
        if self._first_order:
            raise NotComputable(NO_CURVATURE)
        direction, total = self.split(vector), torch.zeros_like(vector)
        for batch in self._samples:
            leaves = [tensor.clone().requires_grad_() for tensor in self.tensors]
            with torch.enable_grad():
                value = self._loss(leaves, *batch)
                gradient = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
                along = torch.stack([(one * other).sum() for one, other in zip(gradient, direction, strict=True)]).sum()
            if not self._checked:
                _require_second_derivative(along)
                self._checked = True
            total += self.join(torch.autograd.grad(along, leaves, materialize_grads=True))
        return total

    def _loss(self, parameters: Sequence[Tensor], samples: Tensor, labels: Tensor) -> Tensor:
        """The share of these samples in the mean."""
        logits = functional_call(self._network, dict(zip(self._names, parameters, strict=True)), (samples,))
        rows = at_least_float32(logits).flatten(0, -2)
        return F.cross_entropy(rows, labels.flatten(), ignore_index=IGNORED, reduction="sum") / self._count


def _require_second_derivative(value: Tensor) -> None:
    """Raise `NotComputable` if the graph of `value`, a scalar, has a function whose gradient is marked as constant:
    torch leaves it out where gradients of some tensors are asked for, and the product would be wrong without a word."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "Error" in node.name():
            raise NotComputable(NO_CURVATURE)
        waiting += [following for following, _ in node.next_functions]


@contextmanager
def probing(model: Model, samples: Batch, device: torch.device) -> Iterator[ProbeLoss]:
    """The loss on all of the samples, in evaluation mode and full float32, with attention that has a second
    derivative."""
    moved = [batch.to(device) for batch in samples.parts(EVAL_BATCH)]
    batches = [(batch.inputs[model.input_key], batch.targets) for batch in moved]
    with evaluating(model, differentiable=True), sdpa_kernel(SDPBackend.MATH):
        yield ProbeLoss(model, batches)
