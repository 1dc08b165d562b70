"""Base of all that the service answers with."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    """The text below each field is its description in the OpenAPI document."""

    model_config = ConfigDict(use_attribute_docstrings=True)
