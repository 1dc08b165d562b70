"""The table of optimizer steps is about the networks that it names."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from app.recipe.optimizers import OPTIMIZERS
from bench import optimizers


def test_the_networks_have_as_many_parameters_as_they_should() -> None:
    sizes = [sum(math.prod(shape) for shape in shapes()) for shapes in optimizers.NETWORKS.values()]
    assert sizes == [25_557_032, 98_425_344]


def test_orthogonal_gradients_are_orthogonal_to_every_channel() -> None:
    weight, bias = optimizers.parameters([(4, 3, 2), (4,)], orthogonal=True)
    assert weight.grad is not None
    assert bias.grad is not None
    inner = (weight.detach() * weight.grad).flatten(1).sum(1)
    torch.testing.assert_close(inner, torch.zeros(4), atol=1e-6, rtol=0)


def test_every_contestant_has_a_row_and_what_is_ours_a_target(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(optimizers, "NETWORKS", {"tiny": lambda: [(4, 3), (4,)]})
    page = tmp_path / "page.md"
    page.write_text("<!-- optimizers: begin -->\n<!-- optimizers: end -->\n")
    threads = torch.get_num_threads()
    optimizers.main([*optimizers.OURS, "--rounds", "2", "--threads", str(threads), "--write", str(page)])
    lines = [line for line in page.read_text().splitlines() if line.startswith("| tiny")]
    assert len(lines) == 2 * len(optimizers.OURS)
    assert {line.split(" | ")[-2] for line in lines if "adamp" in line} == {"ratio under 1.5"}
    assert "adamp" in capsys.readouterr().out


def test_contestants_are_options_of_the_contract() -> None:
    assert {type(spec) for spec in optimizers.OURS.values()} <= set(OPTIMIZERS)
