"""The page of training methods says what the contract says."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.recipe.methods import METHODS, MethodSpec
from scripts.methods_page import page

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def test_the_page_is_as_the_contract_writes_it() -> None:
    assert PAGE.read_text() == page(), "python -m scripts.methods_page > docs/methods.md"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_method_has_its_use_its_cost_and_describes_its_fields(method: type[MethodSpec]) -> None:
    assert method.applies
    assert method.cost
    assert all(field.description for name, field in method.model_fields.items() if name != "kind")
