"""Data files for the examples of landmarks: small faces drawn of a few strokes, or photographs that you have.

python examples/faces.py FOLDER
python examples/faces.py FOLDER --photographs landmarks.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from archives import DataFiles, write_parts

SIDE = 24
"""Pixels."""
TRAIN, TEST = 1000, 300
MEAN = np.array(
    [
        [-0.5, -0.3],
        [-0.2, -0.3],
        [0.2, -0.3],
        [0.5, -0.3],
        [0.0, -0.1],
        [0.0, 0.15],
        [-0.3, 0.45],
        [0.0, 0.5],
        [0.3, 0.45],
    ]
)
"""Outer and inner corners of the eyes, from left to right; top and tip of the nose; mouth from left to right."""
WAYS = np.array(
    [
        [[-1, 0], [0, 0], [0, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]],  # wide eyes
        [[0, 0], [0, 0], [0, 0], [0, 0], [0, -1], [0, 1], [0, 0], [0, 0], [0, 0]],  # a long nose
        [[0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [-1, 0], [0, 0], [1, 0]],  # a wide mouth
        [[0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, -1], [0, 1], [0, -1]],  # a smile
    ]
)
"""How faces differ from the mean."""
STROKES = [(0, 1), (2, 3), (4, 5), (6, 7), (7, 8)]

NDArray = np.ndarray[Any, np.dtype[Any]]


def write_faces(folder: Path) -> DataFiles:
    """Draw the faces, always the same ones, and write them to `folder`.

    Their archives have `x` (N, 24, 24) uint8 and `y` (N, 9, 2) float32: x before y, in fractions of the side.
    """
    random = np.random.default_rng(0)
    points = draw_points(draw_shapes(TRAIN + TEST, random), random)
    images = draw_images(points)
    folder.mkdir(parents=True, exist_ok=True)
    paths = DataFiles(folder / "faces.npz", folder / "faces-test.npz")
    for path, part in zip(paths, (slice(TRAIN), slice(TRAIN, None)), strict=True):
        np.savez_compressed(path, x=images[part], y=points[part].astype(np.float32))
    return paths


def draw_shapes(count: int, random: np.random.Generator) -> NDArray:
    """Landmarks (count, 9, 2) of so many persons, held upright."""
    shapes: NDArray = MEAN + np.einsum("nw,wkc->nkc", random.normal(0.0, 0.08, (count, len(WAYS))), WAYS)
    return shapes


def draw_points(persons: NDArray, random: np.random.Generator) -> NDArray:
    """Landmarks (N, 9, 2) of faces of these `persons` (N, 9, 2): unsteady hands, and where and how the face is held."""
    count, shapes = len(persons), persons + random.normal(0.0, 0.01, persons.shape)
    angle, size = random.uniform(-0.5, 0.5, count), random.uniform(0.6, 0.95, count)
    turn = size[:, None, None] * np.stack(
        [np.stack([np.cos(angle), -np.sin(angle)], 1), np.stack([np.sin(angle), np.cos(angle)], 1)], 1
    )
    return 0.5 + 0.5 * shapes @ turn.swapaxes(1, 2) + random.uniform(-0.08, 0.08, (count, 1, 2))


def draw_images(points: NDArray) -> NDArray:
    """Pictures (N, 24, 24) uint8 of the strokes between landmarks (N, 9, 2): dark on light."""
    centres = (np.arange(SIDE) + 0.5) / SIDE
    pixels = np.stack(np.meshgrid(centres, centres), -1)
    ink = np.zeros((len(points), SIDE, SIDE))
    for first, last in STROKES:
        ink = np.maximum(ink, np.exp(-((distances(pixels, points[:, first], points[:, last]) * SIDE) ** 2)))
    return np.round(255 * (1.0 - ink)).astype(np.uint8)


def distances(pixels: NDArray, first: NDArray, last: NDArray) -> NDArray:
    """From each pixel (H, W, 2) to the straight lines between `first` and `last` (N, 2): (N, H, W)."""
    along, start = (last - first)[:, None, None], first[:, None, None]
    share = ((pixels - start) * along).sum(-1) / (along**2).sum(-1)
    nearest = start + np.clip(share, 0.0, 1.0)[..., None] * along
    return np.linalg.norm(pixels - nearest, axis=-1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes faces.npz and faces-test.npz.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument(
        "--photographs", type=Path, help="archive with x_train, y_train, x_test and y_test, as drawn ones"
    )
    options = parser.parse_args()
    photographs = options.photographs
    for path in write_parts(photographs, options.folder, "faces") if photographs else write_faces(options.folder):
        print(path)
