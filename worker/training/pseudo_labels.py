"""Pseudo labels of training images, by which batches are drawn (G-SimCLR, 2009.12007): clusters of codes or vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.data.pseudo_labels import PseudoLabels
from app.recipe.job import JobSpec
from worker.clustering import k_means
from worker.data.batches import Batch, Order
from worker.data.class_batches import distinct_order, repeated_share
from worker.data.randomness import derive_seed, generator
from worker.errors import UserError
from worker.students.model import Model
from worker.tasks.prediction import predict

NAME = "pseudo-labels"
SIDE, HIDDEN, BATCH, RATE = 32, 256, 256, 1e-3
"""Largest side of the images of the autoencoder, width of its hidden layers, and its batches and learning rate."""


class LabelStore(nn.Module):
    """Pseudo labels (N,) int64 of the training samples, which checkpoints store."""

    labels: Tensor

    def __init__(self, labels: Tensor, batch: int) -> None:
        super().__init__()
        self.register_buffer("labels", labels)
        self._batch = batch

    @property
    def order(self) -> Order:
        """Draws an epoch's order from the labels at the time of the call, which may be those of a checkpoint."""
        return lambda random: distinct_order(self.labels, self._batch, random)

    def figures(self, seed: int) -> dict[str, Any]:
        """Figures for the report; those of repeats are of the first epoch."""
        sizes = self.labels.bincount()
        order = self.order(generator(seed, "order", 0))
        return {
            "clusters": int((sizes > 0).sum()),
            "largest": int(sizes.max()),
            "repeated_share": repeated_share(self.labels, order, self._batch),
        }


def open_labels(
    job: JobSpec, samples: Batch, teachers: Mapping[str, Model], seed: int, *, resumed: bool
) -> LabelStore | None:
    """The pseudo labels of the training `samples`; none: the job has none. They are computed on the CPU, so that they
    do not depend on the device, or if `resumed` left to the checkpoint. Raises UserError (`invalid_job`) for more
    clusters than samples."""
    spec, batch = job.recipe.pseudo_labels, job.recipe.batch_size
    if spec is None:
        return None
    if spec.clusters is not None and spec.clusters > len(samples):
        found = f"is {spec.clusters}, and there are {len(samples)} training images; accepted: at most as many"
        raise UserError("invalid_job", f"recipe.pseudo_labels.clusters {found}", "recipe.pseudo_labels.clusters")
    if resumed:
        return LabelStore(torch.zeros(len(samples), dtype=torch.int64), batch)
    clusters = min(spec.clusters or batch, len(samples))
    teacher = next(iter(teachers.values()), None) if spec.source == "teacher" else None
    rows = codes(spec, samples, seed) if teacher is None else _vectors(teacher, samples)
    first = torch.randperm(len(rows), generator=generator(seed, NAME, "centres"))[:clusters]
    return LabelStore(k_means(rows, rows[first])[1], batch)


def _vectors(teacher: Model, samples: Batch) -> Tensor:
    """Unit vectors (N, C) float32 of a teacher for all samples, without augmentation, on the CPU."""
    device = next(teacher.parameters()).device
    stored = samples.inputs[teacher.input_key]
    rows = torch.cat([predict(teacher, part.to(device)) for part in torch.split(stored, BATCH)])
    return F.normalize(rows, dim=-1)


class ImageAutoencoder(nn.Module):
    """Codes and restored pixels of flat images (B, D)."""

    def __init__(self, pixels: int, dimensions: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dimensions))
        self.decode = nn.Sequential(nn.ReLU(), nn.Linear(dimensions, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, pixels))

    def forward(self, rows: Tensor) -> Tensor:
        restored: Tensor = self.decode(self.encode(rows))
        return restored


def codes(spec: PseudoLabels, samples: Batch, seed: int) -> Tensor:
    """Codes (N, dimensions) float32, on the CPU, of a denoising autoencoder that is trained on all samples."""
    images = samples.inputs["images"]
    mean, std = _statistics(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, NAME, "weights"))
        model = ImageAutoencoder(_flat(images[:1]).shape[1], spec.dimensions)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for epoch in range(spec.epochs):
        random = generator(seed, NAME, epoch)
        for part in torch.split(torch.randperm(len(images), generator=random), BATCH):
            rows = (_flat(images[part.to(images.device)]) - mean) / std
            noisy = rows + spec.noise * torch.randn(rows.shape, generator=random)
            F.mse_loss(model(noisy), rows).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return torch.cat([model.encode((_flat(part) - mean) / std) for part in torch.split(images, BATCH)])


def _flat(images: Tensor) -> Tensor:
    """Pixels (B, D) float32 on the CPU of images (B, C, H, W), which are reduced to `SIDE` at most."""
    pixels = images.cpu().float()
    size = [min(side, SIDE) for side in pixels.shape[2:]]
    return F.interpolate(pixels, size, mode="area").flatten(1)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, float32 scalars, of all pixels."""
    count, total, squares = 0, 0.0, 0.0
    for part in torch.split(images, BATCH):
        pixels = _flat(part).double()
        count += pixels.numel()
        total += float(pixels.sum())
        squares += float(pixels.square().sum())
    mean = total / count
    variance = max(squares / count - mean * mean, 0.0)
    return torch.tensor(mean), torch.tensor(variance**0.5 or 1.0)
