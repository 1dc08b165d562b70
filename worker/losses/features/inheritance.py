"""Inheritance and exploration (2107.00181): one half of the student's channels becomes similar to the teacher's
feature, the second half dissimilar.

The teacher's code comes from an autoencoder of its feature, which is trained in an earlier stage and then frozen.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses.features import Factors, FeatureAutoencoder, InheritanceExploration
from app.recipe.losses.taps import Tap
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.activations import both, of_teacher, row_shares, same_size
from worker.losses.features.adapters import RowNorm, part_key, require_kind

SLOPE = 0.1


class Coder(nn.Module):
    """Three 3x3 convolutions with batch norm, leaky ReLUs before, between and after; keeps height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = [(inputs, inputs), (inputs, outputs), (outputs, outputs)]
        self.convolutions = nn.ModuleList(_conv3x3(*width) for width in widths)
        self.norms = nn.ModuleList(RowNorm(width) for _, width in widths)

    def forward(self, feature: Tensor, valid: Tensor | None = None) -> Tensor:
        """Maps (B, outputs, H, W) from floating maps (B, inputs, H, W); `valid` (B,) bool: rows that the batch norms
        use."""
        feature = F.leaky_relu(feature, SLOPE)
        for convolve, norm in zip(self.convolutions, self.norms, strict=True):
            feature = F.leaky_relu(norm(convolve(feature), valid), SLOPE)
        return feature


class Autoencoder(nn.Module):
    """Autoencoder of maps with `width` channels and a code of `factors` channels."""

    def __init__(self, width: int, factors: int) -> None:
        super().__init__()
        self.encode, self.decode = Coder(width, factors), Coder(factors, width)

    def forward(self, feature: Tensor, valid: Tensor | None = None) -> Tensor:
        """The reconstruction (B, C, H, W) of a floating feature of that shape; `valid` (B,) bool: rows that the batch
        norms use."""
        restored: Tensor = self.decode(self.encode(feature, valid), valid)
        return restored


class Encoders(nn.Module):
    """Encoders for both halves of the student's channels; the second half has one more if their number is odd."""

    def __init__(self, width: int, factors: int) -> None:
        super().__init__()
        self.split_at = width // 2
        self.inherit, self.explore = Coder(self.split_at, factors), Coder(width - self.split_at, factors)

    def forward(self, feature: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes (B, F, H, W) of the half that inherits and of the half that explores, from a floating map (B, C, H, W);
        `valid` (B,) bool: rows that the batch norms use."""
        return self.inherit(feature[:, : self.split_at], valid), self.explore(feature[:, self.split_at :], valid)


class FeatureAutoencoderTerm:
    """Reconstruction error of the autoencoder on the teacher's feature."""

    def __init__(self, spec: FeatureAutoencoder, builder: LossBuilder) -> None:
        self.tap, self.p = spec.tap, spec.p
        width = _channels(builder.teacher(spec.tap, spec.teacher), builder, "tap")
        factors = spec.factors or _half(width)
        key = _key(spec, spec.tap, factors)
        if key in builder.frozen:
            raise builder.refuse(f"{spec.name!r} is used in the same stage, where it is frozen", "name")
        self.coder = builder.part(key, lambda: Autoencoder(width, factors))

    def __call__(self, inputs: LossInputs) -> Tensor:
        feature = of_teacher(inputs, self.tap)
        return mean_power(feature - self.coder(feature, inputs.valid), self.p, inputs.valid)


class InheritanceExplorationTerm:
    """Distance of the inheriting half's code to the teacher's, minus the distance of the exploring half's code."""

    def __init__(self, spec: InheritanceExploration, builder: LossBuilder) -> None:
        self.spec = spec
        teacher_width = _channels(builder.teacher(spec.pair.teacher, spec.teacher), builder, "pair.teacher")
        width = _channels(builder.student(spec.pair.student), builder, "pair.student")
        if width < 2:
            raise builder.refuse("the student has one channel there; accepted: two or more", "pair.student")
        factors = spec.factors or _half(teacher_width)
        tap = spec.pair.teacher
        key = _key(spec, tap, factors)
        if key not in builder.aux_modules or key in builder.trained:
            found = f"no stage before this one has a feature-autoencoder called {spec.name!r} of {factors} factors"
            raise builder.refuse(f"{found} at {tap.path!r} of the teacher", "name")
        autoencoder = builder.part(key, lambda: Autoencoder(teacher_width, factors), frozen=True)
        self.encode = autoencoder.get_submodule("encode")
        key = part_key(spec.name, f"encoders-{factors}", [spec.pair.student, tap], spec.teacher)
        self.encoders = builder.part(key, lambda: Encoders(width, factors))

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = both(inputs, self.spec.pair)
        with torch.no_grad():
            source = self.encode(teacher)
        inherited, explored = self.encoders(student, inputs.valid)
        inherit = inherit_loss(self.spec, *same_size(inherited, source), inputs.valid)
        return inherit + explore_loss(self.spec, *same_size(explored, source), inputs.valid)


def inherit_loss(spec: InheritanceExploration, code: Tensor, source: Tensor, valid: Tensor | None) -> Tensor:
    """Weighted loss of each row (B,), from floating codes (B, F, H, W) of student and teacher."""
    gap = 1.0 - cosines(code, source) if spec.distance == "cosine" else _norm_gap(spec, code, source, valid)
    return spec.inherit * gap


def explore_loss(spec: InheritanceExploration, code: Tensor, source: Tensor, valid: Tensor | None) -> Tensor:
    """Weighted loss of each row (B,), from floating codes (B, F, H, W) of the exploring half and of the teacher."""
    similarity = cosines(code, source).abs() if spec.distance == "cosine" else -_norm_gap(spec, code, source, valid)
    return spec.explore * similarity


def cosines(code: Tensor, source: Tensor) -> Tensor:
    """Cosine of each row (B,) of two floating codes (B, ...)."""
    return F.cosine_similarity(code.flatten(1), source.flatten(1), dim=1)


def _norm_gap(spec: InheritanceExploration, code: Tensor, source: Tensor, valid: Tensor | None) -> Tensor:
    """Distance between both codes, each normalised to length 1."""
    return mean_power(F.normalize(code.flatten(1)) - F.normalize(source.flatten(1)), spec.p, valid)


def mean_power(gaps: Tensor, p: float, valid: Tensor | None) -> Tensor:
    """(mean |gaps|^p)^(1/p) over the valid rows, the same in every row (B,); at p = 1 each row has its own mean. From
    floating `gaps` (B, ...)."""
    means = gaps.abs().flatten(1).pow(p).mean(1)
    if p == 1.0:
        return means
    mean = row_shares(len(means), valid, means) @ means
    return mean.clamp(min=torch.finfo(mean.dtype).tiny).pow(1.0 / p).expand(len(means))  # a root of 0 has no gradient


def _channels(shape: torch.Size, builder: LossBuilder, field: str) -> int:
    require_kind(builder, shape, (4,), field)
    return shape[1]


def _half(width: int) -> int:
    return max(1, width // 2)


def _key(spec: Factors, tap: Tap, factors: int) -> str:
    """Name by the teacher's tap alone, so that an earlier stage does not depend on the student's."""
    return part_key(spec.name, f"autoencoder-{factors}", [tap], spec.teacher)


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(2.0 / (9 * outputs)))
    return layer
