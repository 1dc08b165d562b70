"""The machine under the trainer: device, threads and determinism."""

from __future__ import annotations

import math
import os

import torch

SMALL_FLOPS = 100_000_000
SHARE_OF_SAMPLES = 0.25
"""Of a GPU's free memory: the student, what it keeps for its backward pass and its optimizer take the rest."""


def choose_device() -> torch.device:
    """The first CUDA device when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def room_for_samples(device: torch.device) -> float:
    """Bytes that the training samples of a job may take on its device, once the teachers are there."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return SHARE_OF_SAMPLES * free


def choose_threads(flops: int, device: torch.device) -> None:
    """One thread for training on the CPU whose forward pass on a micro-batch takes only `flops` operations.

    Two threads on two idle cores gain nothing there, and where another process wants a core, the one that waits for the
    other spins: 19 steps a second were seen instead of 460. OMP_NUM_THREADS overrules this.
    """
    if device.type == "cpu" and flops < SMALL_FLOPS and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def make_deterministic() -> None:
    """Ask for deterministic kernels; where none exists, torch warns on stderr. Call before CUDA is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set on the module
