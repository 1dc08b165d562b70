"""Targets of pairs of images, as in `worker.data.pairs`."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from worker.data.archive import NDArray
from worker.data.batches import Batch
from worker.data.formats.columns import Samples, TextSamples
from worker.data.formats.faults import invalid, shown
from worker.data.formats.image_pairs import PAIR
from worker.data.pairs import POSITIVE, QUERY, ROLE, SCORE, TEXT


def pair_targets(samples: Mapping[str, Samples]) -> dict[str, Tensor]:
    """Targets (2 N, 3) float32 of files of pairs; equal images of all files have the same number. Raises UserError
    (`invalid_data`) for labels other than 0 and 1."""
    numbers: dict[bytes, int] = {}
    return {param: _targets(one, numbers, param) for param, one in samples.items()}


def _targets(samples: Samples, numbers: dict[bytes, int], param: str) -> Tensor:
    labels, images = np.asarray(samples.labels), samples.inputs
    assert not isinstance(images, TextSamples)  # the contract refuses texts
    right = np.isin(labels, (0, 1))
    if not right.all():
        index = int(right.argmin())
        accepted = "1 if both images are of one class, and 0 if not"
        raise invalid(f"the label of pair {index} of {param} is {shown(labels[index])}; accepted: {accepted}", param)
    targets = torch.empty(len(images), 3)
    targets[:, SCORE] = torch.from_numpy(labels.astype(np.float32)).repeat_interleave(PAIR)
    targets[:, TEXT] = torch.tensor([numbers.setdefault(_digest(image), len(numbers)) for image in images]).float()
    targets[:, ROLE] = torch.tensor([QUERY, POSITIVE]).repeat(len(labels)).float()
    return targets


def _digest(image: NDArray) -> bytes:
    return blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


def is_paired(targets: Tensor) -> bool:
    """Whether targets are those of pairs (2 N, 3), not classes (N,)."""
    return targets.ndim > 1


def pair_labels(targets: Tensor) -> Tensor:
    """(N,) int64: 1 for pairs of one class, else 0, from targets (2 N, 3)."""
    return targets[::PAIR, SCORE].long()


def pair_figures(pairs: Batch) -> dict[str, int]:
    """Numbers of pairs, of pairs of one class among them, and of different images."""
    labels = pair_labels(pairs.targets)
    images: Tensor = torch.unique(pairs.targets[:, TEXT])
    return {"pairs": len(labels), "same": int(labels.sum()), "images": len(images)}


def require_both(pairs: Batch, param: str) -> None:
    """Raise UserError (`invalid_data`) if all pairs are of one class, or none."""
    labels = pair_labels(pairs.targets)
    if int(labels.min()) == int(labels.max()):
        found = f"all pairs of {param} have the label {int(labels[0])}"
        raise invalid(f"{found}; accepted: some of 1 and some of 0", param)


def shared_pairs(train: Tensor, evaluation: Tensor) -> int:
    """Pairs to evaluate on with an image that is trained on, from targets (2 N, 3) and (2 M, 3)."""
    known = torch.isin(evaluation[:, TEXT], train[:, TEXT])
    return int(known.view(-1, PAIR).any(1).sum())
