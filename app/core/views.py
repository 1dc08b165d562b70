"""Base of the service's answers, and those that several resources give."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    """The text below each field is its description in the OpenAPI document."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class DeletedView(View):
    """Something that is gone."""

    id: str
    """Id of what was deleted."""
    object: Literal["file", "model", "job"]
    """Kind of what was deleted."""
    deleted: Literal[True] = True
