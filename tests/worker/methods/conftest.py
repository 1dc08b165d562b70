"""Inputs of whole jobs that search a super-network."""

from __future__ import annotations

import pytest

from tests import kinds
from tests.worker.methods.supernet_scene import write_encoder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    kinds.write_data(folder)
    write_encoder(folder / "encoder")
    return {path.stem: str(path) for path in folder.iterdir()}
