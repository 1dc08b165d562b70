"""Batches of classes that the student confuses, found anew in a pool of training images every few steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from app.recipe.data.hard_negatives import HardNegatives
from app.recipe.job import Recipe
from app.recipe.plan import EVAL_BATCH
from worker.data.batches import Batch
from worker.data.class_batches import require_classes
from worker.data.hard_negatives import NO_CLASS, NearClasses, confusion, pool_of
from worker.distributed.ranks import SingleProcess
from worker.protocol import Log, Send
from worker.training.shared_vectors import from_first, shared_vectors
from worker.training.state import TrainState

NEVER = -1
"""Step of the last refresh, before the first."""


class HardNegativePool(nn.Module):
    """The nearest classes of each class in the last pool, which checkpoints store."""

    nearest: Tensor
    """(C, W) int64: see `Confusion`."""
    step: Tensor
    """int64 scalar: the step of the last refresh."""
    hardest: Tensor
    """float32 scalar: see `Confusion`."""

    def __init__(self, spec: HardNegatives, samples: Batch, batches: NearClasses, seed: int, send: Send) -> None:
        super().__init__()
        self._spec, self._samples, self._batches, self._seed, self._send = spec, samples, batches, seed, send
        self._labels = samples.targets.cpu()
        unknown = torch.full((self._batches.classes, self._batches.width), NO_CLASS)
        self.register_buffer("nearest", unknown)
        self.register_buffer("step", torch.tensor(NEVER))
        self.register_buffer("hardest", torch.zeros(()))
        self._refreshed: int | None = None
        self._shares: dict[int, float] = {}

    def choose(self, step: int, size: int) -> Tensor:
        """Indices (size,) int64 of the samples of a step."""
        chosen = self._batches.classes_at(step, self.nearest)
        self._shares[step] = chosen.from_pool / len(chosen.classes)
        return self._batches.samples_of(step, chosen.classes, size)

    def refresh(self, state: TrainState, ranks: SingleProcess) -> None:
        """Called before the batch of each step is chosen: embeds a new pool if it is time to. On a resumed job, the
        checkpoint's is used until then."""
        if self._refreshed is None:
            self._refreshed = int(self.step)
        if self._refreshed == (due := state.step - state.step % self._spec.every):
            return
        chosen = pool_of(self._labels, self._spec.pool, self._seed, due)
        parts = torch.split(chosen, EVAL_BATCH)
        vectors = torch.cat([shared_vectors(state.student, self._samples, part, ranks) for part in parts])
        labels = self._labels[chosen].to(vectors.device)
        found = confusion(vectors, labels, self._batches.classes, self._batches.width)
        self.nearest.copy_(from_first(found.nearest, ranks))
        self.hardest.copy_(from_first(found.hardest, ranks))
        self.step.fill_(due)
        self._refreshed = due
        # reading a value waits for the device, so that the next batch may be chosen on another stream
        self._send(Log(message=f"hard negatives at step {due}: {self._summary(len(chosen), float(self.hardest))}"))

    def values(self, step: int) -> dict[str, Tensor]:
        """Metrics of the batch of a step that was chosen: float32 scalars by name."""
        share = torch.full_like(self.hardest, self._shares.pop(step))
        return {"hard_negative_share": share, "hardest_negative_cosine": self.hardest.clone()}

    def figures(self) -> dict[str, Any]:
        """Figures for the report, of the last refresh."""
        refreshes = int(self.step) // self._spec.every + 1
        return {"refreshes": refreshes, "last_step": int(self.step), "hardest_cosine": float(self.hardest)}

    def _summary(self, images: int, hardest: float) -> str:
        known = int((self.nearest[:, 0] != NO_CLASS).sum())
        return f"{images} images of {known} classes; mean cosine to the nearest image of another class {hardest:.3f}"


def open_pool(recipe: Recipe, samples: Batch, seed: int, send: Send) -> HardNegativePool | None:
    """The pool of a recipe with `hard_negatives`, before its first refresh; none: there is none. Raises as
    `require_classes`."""
    if recipe.hard_negatives is None or recipe.samples_per_class is None:
        return None
    per_class, spec = recipe.samples_per_class, recipe.hard_negatives
    together = recipe.batch_size // per_class
    require_classes(samples.targets, together, per_class)
    batches = NearClasses(samples.targets, together, per_class, spec.neighbours, seed)
    return HardNegativePool(spec, samples, batches, seed, send)
