"""Settings that every test of the trainer shares."""

from __future__ import annotations

import pytest
import torch

from worker.trainer.machine import make_deterministic


@pytest.fixture(autouse=True)
def quiet_machine() -> None:
    """Deterministic kernels on one thread, as in the process that the tests stand for."""
    make_deterministic()
    torch.set_num_threads(1)
