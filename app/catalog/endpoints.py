"""HTTP of the catalogue: all options of a job, read from the contract."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends

from app.core.json_body import JsonRoute
from app.core.views import View
from app.projects.auth import Caller, require
from app.recipe.base import Spec, TaskOption
from app.recipe.data.augmentation import AUGMENTATIONS
from app.recipe.data.sources import FORMATS
from app.recipe.data.tokenizers import TOKENIZERS
from app.recipe.diagnostics import DIAGNOSTICS
from app.recipe.losses import LOSSES
from app.recipe.methods import METHODS
from app.recipe.optimizers import OPTIMIZERS, SCHEDULES
from app.recipe.students.architectures import STUDENTS
from app.recipe.students.heads import HEADS
from app.recipe.students.layers import ACTIVATIONS, ATTENTIONS, NORMS
from app.recipe.students.quantisation import QUANTISATIONS
from app.recipe.tasks import tasks_for
from app.recipe.teachers.cache import TEACHER_CACHES

router = APIRouter(prefix="/v1/catalog", tags=["catalog"], route_class=JsonRoute)
Reader = Annotated[Caller, Depends(require("read"))]
Group = Literal[
    "losses",
    "optimizers",
    "schedules",
    "students",
    "norms",
    "activations",
    "attentions",
    "heads",
    "quantisations",
    "formats",
    "augmentations",
    "tokenizers",
    "teacher-caches",
    "diagnostics",
    "methods",
]
TAGS = ("architecture", "format", "store", "kind")
"""Discriminator fields of the options."""
GROUPS: dict[Group, tuple[type[Spec], ...]] = {
    "losses": LOSSES,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "students": STUDENTS,
    "norms": NORMS,
    "activations": ACTIVATIONS,
    "attentions": ATTENTIONS,
    "heads": HEADS,
    "quantisations": QUANTISATIONS,
    "formats": FORMATS,
    "augmentations": AUGMENTATIONS,
    "tokenizers": TOKENIZERS,
    "teacher-caches": TEACHER_CACHES,
    "diagnostics": DIAGNOSTICS,
    "methods": METHODS,
}


class PaperView(View):
    """The source of a method."""

    title: str
    """Title of the paper."""
    arxiv: str
    """Its number on arXiv."""
    url: str
    """Address of the paper."""


class OptionView(View):
    """One option."""

    object: Literal["catalog.option"] = "catalog.option"
    group: Group
    """Group of the option."""
    kind: str
    """Its name in a job, as `kind` (for students `architecture`, for data `format`, for teacher caches `store`)."""
    description: str
    """Description of the option."""
    equation: str | None
    """Equation of a loss."""
    applies: str | None
    """Use of a loss, an optimizer or a diagnostic, in words."""
    tasks: list[str] | None
    """Tasks of a loss, an optimizer, an augmentation, a diagnostic or a method; none: it does not depend on the
    task."""
    paper: PaperView | None
    """Source; null if there is no paper."""
    defaults: dict[str, Any]
    """Default values of optional fields."""
    json_schema: dict[str, Any]
    """JSON Schema of it in a job."""


class OptionList(View):
    """Options of one group, or of all."""

    object: Literal["list"] = "list"
    data: list[OptionView]
    """The options."""


@cache
def _view(group: Group, option: type[Spec]) -> OptionView:
    schema = option.model_json_schema()
    tag = next(tag for tag in TAGS if tag in schema["properties"])
    paper = getattr(option, "paper", None)
    return OptionView(
        group=group,
        kind=schema["properties"][tag]["const"],
        description=inspect.getdoc(option) or "",
        equation=getattr(option, "equation", None) or None,
        applies=getattr(option, "applies", None),
        tasks=tasks_for(option) if issubclass(option, TaskOption) else None,
        paper=paper and PaperView(**paper._asdict(), url=f"https://arxiv.org/abs/{paper.arxiv}"),
        defaults={name: field["default"] for name, field in schema["properties"].items() if "default" in field},
        json_schema=schema,
    )


@router.get("")
async def get_catalog(caller: Reader) -> OptionList:
    """Every option of every group."""
    return OptionList(data=[_view(group, option) for group, options in GROUPS.items() for option in options])


@router.get("/{group}")
async def get_catalog_group(group: Group, caller: Reader) -> OptionList:
    """The options of one group."""
    return OptionList(data=[_view(group, option) for option in GROUPS[group]])
