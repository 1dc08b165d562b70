"""Data of a job for the tests of its rules."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from app.recipe.data.sources import AnyData, Data

COLUMNS = {"input_columns": ["a"], "label_columns": ["b"]}


def options(**fields: Any) -> Data:
    found: Data = TypeAdapter(AnyData).validate_python({"train": "f", **fields})
    return found
