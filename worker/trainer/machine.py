"""The machine under the trainer: device and determinism."""

from __future__ import annotations

import os

import torch


def choose_device() -> torch.device:
    """The first CUDA device when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_deterministic() -> None:
    """Ask for deterministic kernels; where none exists, torch warns on stderr. Call before CUDA is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set on the module
