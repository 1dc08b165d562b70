"""Fields of a job's data that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.app.recipe.data.builders import options


@pytest.mark.parametrize(
    "fields",
    [
        {"augment": [{"kind": "mixup"}, {"kind": "flip"}]},
        {"augment_epochs": 3},
        {"format": "csv", "input_columns": ["a", "a"], "label_columns": ["b"]},
        {"format": "csv", "label_columns": ["b"]},
        {"image_size": [32, 32]},
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        options(**fields)
