"""The table of attention's cost has every kind, and its exponents are those of the times."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.recipe.students.layers import ATTENTIONS
from bench import layers


def test_every_kind_is_measured_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "attention.png"
    layers.main(["--sides", "8", "16", "--rounds", "1", "--picture", str(picture)])
    printed = capsys.readouterr().out
    assert all(f"| {kind.model_fields['kind'].default} | " in printed for kind in ATTENTIONS)
    assert picture.read_bytes()[1:4] == b"PNG"


def test_exponents_are_those_of_the_times() -> None:
    assert layers.growth((8, 16), (1.0, 4.0)) == 1.0
    assert layers.growth((8, 16, 32), (1.0, 16.0, 256.0)) == 2.0
