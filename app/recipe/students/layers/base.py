"""What all families of layers share."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from app.recipe.base import Option


def by_default(option: Option) -> Any:
    """A field that is `option` unless another is given, and is written down only then: so the description of a network
    with the default is the one from before there was a choice, which workers of that time and stored models have."""
    return Field(option, exclude_if=lambda value: value == option)
