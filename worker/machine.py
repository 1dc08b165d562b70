"""Device, threads and determinism of the trainer."""

from __future__ import annotations

import math
import os

import torch

SMALL_FLOPS = 100_000_000
SHARE_OF_SAMPLES = 0.25
"""Share of a GPU's free memory for samples: the student, its activations for the backward pass and its optimizer take
the rest."""


def choose_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sample_memory(device: torch.device) -> float:
    """Bytes that the training samples of a job may take on its device, after the teachers were loaded."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return SHARE_OF_SAMPLES * free


def choose_threads(flops: int, device: torch.device) -> None:
    """Use one thread for training on the CPU if a forward pass of a micro-batch takes few operations (`flops`).

    Two threads on two idle cores gain nothing there. If another process needs a core, the thread that waits spins: 19
    steps a second were measured instead of 460. OMP_NUM_THREADS overrides this.
    """
    if device.type == "cpu" and flops < SMALL_FLOPS and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def make_deterministic() -> None:
    """Select deterministic kernels; torch warns on stderr if none exists. Call before CUDA is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set on the module
