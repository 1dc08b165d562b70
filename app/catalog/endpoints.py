"""HTTP of the catalogue: everything that a job may choose from, read off the contract itself."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from app.projects.auth import Caller, require
from app.recipe.augmentation import AUGMENTATIONS
from app.recipe.base import Option
from app.recipe.losses import LOSSES
from app.recipe.optimizers import OPTIMIZERS, SCHEDULES
from app.recipe.students import STUDENTS
from app.recipe.tokenizers import TOKENIZERS

router = APIRouter(prefix="/v1/catalog", tags=["catalog"])
Reader = Annotated[Caller, Depends(require("read"))]
Group = Literal["losses", "optimizers", "schedules", "students", "augmentations", "tokenizers"]
GROUPS: dict[Group, tuple[type[Option], ...]] = {
    "losses": LOSSES,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "students": STUDENTS,
    "augmentations": AUGMENTATIONS,
    "tokenizers": TOKENIZERS,
}


class PaperView(BaseModel):
    """The source of a method."""

    title: str
    arxiv: str
    url: str


class OptionView(BaseModel):
    """One thing to choose."""

    object: Literal["catalog.option"] = "catalog.option"
    group: Group
    kind: str
    """Its name in a job, as `kind` (of a student: `architecture`)."""
    description: str
    paper: PaperView | None
    defaults: dict[str, Any]
    """Values of the fields that a job may leave out."""
    json_schema: dict[str, Any]


class OptionList(BaseModel):
    """Options of one group, or of all."""

    object: Literal["list"] = "list"
    data: list[OptionView]


@cache
def _view(group: Group, option: type[Option]) -> OptionView:
    tag = "architecture" if "architecture" in option.model_fields else "kind"
    paper = option.paper
    return OptionView(
        group=group,
        kind=option.model_fields[tag].default,
        description=inspect.getdoc(option) or "",
        paper=paper and PaperView(**paper._asdict(), url=f"https://arxiv.org/abs/{paper.arxiv}"),
        defaults=_defaults(option),
        json_schema=option.model_json_schema(),
    )


def _defaults(option: type[Option]) -> dict[str, Any]:
    schema = option.model_json_schema()["properties"]
    return {name: field["default"] for name, field in schema.items() if "default" in field}


@router.get("")
async def get_catalog(caller: Reader) -> OptionList:
    """All losses, optimizers, schedules and students."""
    return OptionList(data=[_view(group, option) for group, options in GROUPS.items() for option in options])


@router.get("/{group}")
async def get_catalog_group(group: Group, caller: Reader) -> OptionList:
    """The options of one group."""
    return OptionList(data=[_view(group, option) for option in GROUPS[group]])
