"""Base of all families of layers."""

from __future__ import annotations

from typing import Any

from pydantic import Field


def by_default(default: Any, **constraints: Any) -> Any:
    """A field with this default, which is only serialised if it differs: so the description of a network with the
    default is the same as before there was a choice, for older workers and stored models."""
    return Field(default, exclude_if=lambda value: value == default, **constraints)
