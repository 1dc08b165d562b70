"""Base of all families of layers."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from app.recipe.base import Option


def by_default(option: Option) -> Any:
    """A field with the default `option`, which is only serialised if it differs: so the description of a network with
    the default is the same as before there was a choice, for older workers and stored models."""
    return Field(option, exclude_if=lambda value: value == option)
