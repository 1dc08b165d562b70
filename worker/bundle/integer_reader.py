"""Reads the integer model of a bundle with NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def predict(file: Any, samples: Array) -> Array:
    """Outputs (N, C) float32 for raw samples (N, ...), from the arrays of `model.integer.npz`: products of integers in
    32 bits, left shifts, and one scale for each layer."""
    x = ((samples.astype(np.float32) * file["scale"] - file["mean"]) / file["std"]).reshape(len(samples), -1)
    for number in range(int(file["layers"])):
        x = np.maximum(x, 0) if number else x
        codes = np.clip(np.rint(x / file[f"steps_{number}"]), -file["largest"], file["largest"]).astype(np.int32)
        sums = (codes << file[f"shifts_{number}"]) @ file[f"weight_{number}"].T.astype(np.int32)
        x = sums.astype(np.float32) * file[f"unit_{number}"] + file[f"bias_{number}"]
    return np.asarray(x * file["target_std"] + file["target_mean"], np.float32)
