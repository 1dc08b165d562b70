"""Cases for the tests of losses: every loss of logits with several settings, and rows as inputs."""

from __future__ import annotations

import torch

from app.recipe import losses
from app.recipe.losses import LOSSES, CrossEntropy, Kd, Loss, Nkd, logits
from worker.losses import build_term
from worker.losses.base import LossInputs, LossTerm
from worker.losses.builder import LossBuilder

CLASSES = 5
PARENTS = [0, 1, 0, 1, 0]
SPECS: list[Loss] = [
    *(spec() for spec in LOSSES if spec.__module__ == logits.__name__ and spec is not losses.KdRel),
    CrossEntropy(label_smoothing=0.1),
    Kd(temperature=1.0),
    Kd(temperature=2.0, standardize=True),
    Nkd(temperature=3.0),
    losses.LogitMse(centered=True),
    losses.Dkd(standardize=True, beta=0.5),
    losses.Dist(temperature=4.0, beta=2.0, gamma=0.5),
    losses.BdKd(temperature=4.0, delta=3.0),
    losses.Jsd(beta=0.0),
    losses.Jsd(beta=1.0),
    losses.SkewKl(skew=0.5, temperature=2.0, standardize=True),
    losses.Akl(mu=0.7, boundary_in_head=True),
    losses.Uld(),
    losses.Uld(temperature=3.0),
    losses.KdTopk(k=3),
    losses.KdRel(parents=PARENTS),
]


def term_of(spec: Loss, classes: int = CLASSES) -> LossTerm:
    """A term that taps nothing and trains nothing."""
    return build_term(spec, LossBuilder({}, {}, classes))


def draw(rows: int = 6, classes: int = CLASSES, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> LossInputs:
    random = torch.Generator().manual_seed(0)
    student, teacher = (scale * torch.randn(rows, classes, generator=random, dtype=dtype) for _ in range(2))
    labels = torch.randint(classes, (rows,), generator=random)
    head = torch.randn(classes, 3, generator=random, dtype=dtype)
    return LossInputs(student.requires_grad_(), labels, teacher, head=head)
