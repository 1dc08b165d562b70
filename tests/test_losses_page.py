"""The page of losses says what the contract says."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.recipe.losses import LOSSES, LossSpec
from scripts.losses_page import page

PAGE = Path(__file__).parents[1] / "docs" / "losses.md"


def test_the_page_is_as_the_contract_writes_it() -> None:
    assert PAGE.read_text() == page(), "python -m scripts.losses_page > docs/losses.md"


@pytest.mark.parametrize("term", LOSSES, ids=lambda term: term.__name__)
def test_every_loss_has_an_equation_and_describes_its_fields(term: type[LossSpec]) -> None:
    assert term.equation
    assert all(field.description for name, field in term.model_fields.items() if name != "kind")
