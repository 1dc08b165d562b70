"""Cases for the tests of losses on features: every kind with several settings, and features as inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from app.recipe.losses import LossSpec
from app.recipe.losses.features import (
    ActivationBoundary,
    AttentionPair,
    AttentionRelation,
    FeatureAutoencoder,
    Hint,
    InheritanceExploration,
    Lipschitz,
    MarginPair,
    MiAlpha,
    Overhaul,
    Pkd,
    Projections,
    Rkd,
)
from app.recipe.losses.reconstruction import MinedReconstruction
from app.recipe.losses.taps import Pair, Tap
from worker.losses import build_term
from worker.losses.base import Features, LossInputs, LossTerm
from worker.losses.builder import LossBuilder, TeacherSide

ROWS = 5
STUDENT = {
    "vector": (3,),
    "tokens": (4, 3),
    "map": (3, 4, 4),
    "late": (4, 2, 2),
    "q": (4, 6),
    "k": (4, 6),
    "v": (4, 6),
    "qkv": (4, 18),
    "video": (3, 4, 4, 4),
    "narrow": (1, 4, 4),
}
TEACHER = {
    "vector": (5,),
    "tokens": (4, 5),
    "map": (5, 4, 4),
    "late": (6, 2, 2),
    "large": (5, 7, 6),
    "short": (2, 5),
    "q": (4, 9),
    "k": (4, 9),
    "v": (4, 9),
    "qkv": (4, 27),
    "video": (3, 4, 4, 4),
    "relu": (5, 4, 4),
    "same.vector": (3,),
    "same.tokens": (4, 3),
    "same.map": (3, 4, 4),
    "same.late": (4, 2, 2),
}
NORMS = {"map": 5, "late": 6, "vector": 5, "tokens": 5, "same.map": 3, "same.late": 4}


def pair(student: str, teacher: str | None = None) -> Pair:
    return Pair(student=Tap(path=student), teacher=Tap(path=teacher or student))


def margin_pair(student: str, teacher: str | None = None, norm: str | None = None) -> MarginPair:
    name = teacher or student
    norm = norm or f"norms.{name.replace('.', '_')}"
    return MarginPair(student=Tap(path=student), teacher=Tap(path=name), batch_norm=norm)


def fused(path: str) -> Projections:
    return Projections(qkv=Tap(path=path))


QKV = Projections(queries=Tap(path="q"), keys=Tap(path="k"), values=Tap(path="v"))
SEPARATE = AttentionPair(student=QKV, teacher=QKV)
FUSED = AttentionPair(student=fused("qkv"), teacher=fused("qkv"))
MAP = Tap(path="map")
SPECS: list[LossSpec] = [
    Hint(pairs=[pair("vector")]),
    Hint(pairs=[pair("tokens"), pair("map")]),
    Hint(pairs=[pair("map", "large")]),
    Hint(pairs=[pair("map", "same.map")], adapter="conv1x1"),
    Hint(pairs=[pair("tokens", "short"), pair("late", "tokens"), pair("vector", "map")], reduction="mean"),
    Hint(pairs=[pair("vector", "same.vector")], adapter="none"),
    Rkd(),
    Rkd(pair=pair("vector"), delta=0.3),
    Rkd(pair=pair("map", "tokens"), distance=0.0, reduction="mean"),
    Rkd(pair=pair("tokens"), angle=0.0),
    AttentionRelation(layer=SEPARATE, relation_heads=2),
    AttentionRelation(layer=FUSED, relation_heads=4, relation="mse"),
    Pkd(pairs=[pair("vector", "same.vector")]),
    Pkd(pairs=[pair("tokens", "same.tokens"), pair("map", "same.map")], reduction="mean"),
    Overhaul(pairs=[margin_pair("map"), margin_pair("late")]),
    Overhaul(pairs=[margin_pair("vector"), margin_pair("tokens")]),
    Overhaul(pairs=[margin_pair("map", "same.map")], adapter="none"),
    ActivationBoundary(pairs=[pair("map"), pair("late")]),
    ActivationBoundary(pairs=[pair("vector"), pair("tokens")], margin=0.5),
    ActivationBoundary(pairs=[pair("map", "same.map")], adapter="none"),
    Lipschitz(pairs=[pair("map"), pair("late")]),
    Lipschitz(pairs=[pair("map", "large"), pair("late"), pair("late", "map")], adapter="none", iterations=3),
    MiAlpha(pair=pair("vector"), hidden=4, embedding=3),
    MiAlpha(pair=pair("tokens", "map"), hidden=4, embedding=3, alpha=1.0, reduction="mean"),
    MiAlpha(pair=pair("late", "tokens"), hidden=4, embedding=3, alpha=0.0),
    MiAlpha(pair=pair("vector"), hidden=4, embedding=3, bound="infonce"),
    FeatureAutoencoder(tap=MAP),
    FeatureAutoencoder(tap=MAP, p=2.0, factors=3),
    InheritanceExploration(pair=pair("map")),
    InheritanceExploration(pair=pair("map"), p=2.0),
    InheritanceExploration(pair=pair("late", "map"), distance="cosine", inherit=2.0, explore=0.5),
    MinedReconstruction(pairs=[pair("map"), pair("late", "large")]),
    MinedReconstruction(pairs=[pair("tokens"), pair("map", "same.map")], gamma=0.0),
]
"""Each in the default or the less usual setting of every field."""


def random_features(shapes: Mapping[str, tuple[int, ...]], seed: int, rows: int = ROWS) -> dict[Tap, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        Tap(path=name): torch.randn(rows, *shape, generator=random, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def draw(rows: int = ROWS, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> LossInputs:
    """Rows with features at every tap of STUDENT and TEACHER, and outputs of the same widths as the vectors."""
    sides = random_features(STUDENT, 0, rows), random_features(TEACHER, 1, rows)
    student, teacher = ({tap: (scale * value).to(dtype) for tap, value in side.items()} for side in sides)
    for value in student.values():
        value.requires_grad_()
    outputs = (scale * torch.randn(rows, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).to(dtype)
    said = teacher[Tap(path="same.vector")]
    return LossInputs(
        outputs.requires_grad_(), torch.zeros(rows, dtype=torch.int64), said, features=Features(student, teacher)
    )


def builder(dtype: torch.dtype = torch.float64) -> LossBuilder:
    """A builder with the shapes of `draw`, and a teacher with the batch norms that `margin_pair` names."""
    network = nn.Module()
    network.norms = nn.ModuleDict({name.replace(".", "_"): _norm(width) for name, width in NORMS.items()})
    network.relu = nn.ReLU()
    student, teacher = (
        {Tap(path=name): torch.Size((2, *shape)) for name, shape in shapes.items()} for shapes in (STUDENT, TEACHER)
    )
    return LossBuilder(student, {"teacher": TeacherSide(network.to(dtype), teacher)}, 3, param="recipe.losses[1]")


def _norm(width: int) -> nn.Module:
    norm = nn.BatchNorm2d(width)
    random = torch.Generator().manual_seed(width)
    norm.load_state_dict(
        {name: torch.randn(width, generator=random) for name in ("weight", "bias")},
        strict=False,
    )
    return norm


@dataclass
class Built:
    """A term, and what it was built with."""

    term: LossTerm
    parts: nn.ModuleDict
    trained: list[nn.Parameter]

    def __call__(self, rows: LossInputs) -> Tensor:
        return self.term(rows)


def build(spec: LossSpec, dtype: torch.dtype = torch.float64) -> Built:
    """The term with all its parts in `dtype`; what a stage before it must have trained is there, untrained."""
    shop = builder()
    if isinstance(spec, InheritanceExploration):
        before = FeatureAutoencoder(tap=spec.pair.teacher, factors=spec.factors, name=spec.name)
        build_term(before, shop)
        shop.new_stage()
    term = build_term(spec, shop)
    parts = shop.aux_modules.to(dtype)
    for name in shop.frozen:
        parts[name].requires_grad_(False).eval()
    names = sorted(shop.trained - shop.frozen)
    return Built(term, parts, [parameter for name in names for parameter in parts[name].parameters()])


def inputs(spec: LossSpec, rows: LossInputs) -> list[Tensor]:
    """The student's inputs of the term."""
    return [rows.features.student[tap] for tap in spec.taps().student] or (
        [rows.student] if isinstance(spec, Rkd) else []
    )


def total(built: Built, rows: LossInputs) -> Tensor:
    """The loss of the batch: the mean over the rows that count."""
    values = built(rows)
    return values.mean() if rows.valid is None else values.where(rows.valid, 0.0).sum() / rows.valid.sum().clamp(min=1)
