"""Simulates the spiking model of a bundle with NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def simulate(weights: list[Array], x: Array, steps: int) -> tuple[Array, list[Array]]:
    """Sums of the output layer (N, C) over all time steps, and the spikes (N, D) of every other layer.

    An input (N, K) is a current that repeats in every step. A neuron adds its inputs to its potential, spikes at 1 or
    more, and subtracts 1; the spikes reach the next layer in the same step. `weights` are (K, D), (D, E), …
    """
    current = x @ weights[0]
    potentials = [np.zeros((len(x), weight.shape[1])) for weight in weights]
    counts = [np.zeros_like(potential, dtype=np.int64) for potential in potentials[:-1]]
    for _ in range(steps):
        arriving = current
        for number, potential in enumerate(potentials):
            potential += arriving
            if number < len(counts):
                spikes = potential >= 1.0
                potential -= spikes
                counts[number] += spikes
                arriving = spikes.astype(np.float64) @ weights[number + 1]
    return potentials[-1], counts


def read_weights(file: Any) -> list[Array]:
    """The weights of `model.spiking.npz`: real ones of the first and the last layer, of the others signs in bits times
    a scale for each neuron."""
    found = [file["first"].T.astype(np.float64)]
    for number in range(int(file["layers"])):
        bits = np.unpackbits(file[f"signs_{number}"], axis=1, count=found[-1].shape[1])
        found.append((file[f"scales_{number}"][:, None].astype(np.float64) * (2.0 * bits - 1.0)).T)
    return [*found, file["last"].T.astype(np.float64)]


def predict(file: Any, samples: Array, steps: int) -> tuple[Array, list[Array]]:
    """Outputs (N, C) float32 after `steps` time steps for raw samples (N, ...), in the units of the trained network's
    outputs, and the spikes (N, D) of every layer."""
    x = ((samples.astype(np.float32) * file["scale"] - file["mean"]) / file["std"]).reshape(len(samples), -1)
    sums, counts = simulate(read_weights(file), x.astype(np.float64), steps)
    return (sums / steps * file["target_std"] + file["target_mean"]).astype(np.float32), counts
