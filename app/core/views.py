"""Base of the service's responses, and those shared by several resources."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    """Base of responses. The text below each field is its description in the OpenAPI document."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class DeletedView(View):
    """A deleted resource."""

    id: str
    """Id of the deleted resource."""
    object: Literal["file", "model", "job"]
    """Kind of the deleted resource."""
    deleted: Literal[True] = True
