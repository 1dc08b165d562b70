"""Rows of tensors that lie in several files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worker.distributed.parts import Stored, open_pieces

WHOLE = torch.arange(14.0).reshape(7, 2)


@pytest.fixture(params=[[7], [3, 3, 1], [4, 3]])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Stored]:
    paths = []
    for number, part in enumerate(WHOLE.split(request.param)):
        once = {"step": torch.tensor(5.0), "none": torch.empty(0, 3)} if number == 0 else {}
        save_file({"rows": part.clone(), **once}, path := tmp_path / f"{number}")
        paths.append(path)
    return open_pieces(paths)


@pytest.mark.parametrize(("begin", "end"), [(0, 7), (0, 3), (2, 5), (3, 4), (6, 7), (7, 7), (2, 2)])
def test_any_rows_are_those_of_the_whole(stored: dict[str, Stored], begin: int, end: int) -> None:
    rows = stored["rows"]
    assert rows.shape == WHOLE.shape
    assert torch.equal(rows.read(begin, end), WHOLE[begin:end])
    assert torch.equal(rows.read(), WHOLE)


def test_a_tensor_in_one_file_only_is_read_too(stored: dict[str, Stored]) -> None:
    assert stored["step"].shape == ()
    assert stored["step"].read() == 5.0
    assert stored["none"].read().shape == stored["none"].shape == (0, 3)
