"""Inputs and short cuts of whole jobs that search a super-network."""

from __future__ import annotations

import pytest

from tests import kinds
from tests.worker.methods.supernet_scene import write_encoder
from worker.bundle import writer as bundle
from worker.training import measure


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    kinds.write_data(folder)
    write_encoder(folder / "encoder")
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "draw_curves", lambda *_: None)
    monkeypatch.setattr(measure, "RUNS", 1)
