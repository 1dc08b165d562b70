"""Writes scikit-learn's handwritten digits (1,797 real images of 8 x 8 pixels) as data files for the examples.

python examples/digits.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

TEST_IMAGES = 500
FEW_LABELS = 200


class DataFiles(NamedTuple):
    """Three archives, each with `x` (N, 8, 8) uint8 and `y` (N,) int64."""

    many: Path
    """All images but the test set: what the teacher learns from."""
    few: Path
    """The first 200 of them: what the students learn from."""
    test: Path
    """500 images that nobody learns from."""


def write_digits(folder: Path) -> DataFiles:
    """Split the digits, always in the same way, and write them to `folder`."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)
    labels = digits.target[order].astype(np.int64)
    test, many, few = slice(TEST_IMAGES), slice(TEST_IMAGES, None), slice(TEST_IMAGES, TEST_IMAGES + FEW_LABELS)
    folder.mkdir(parents=True, exist_ok=True)
    paths = DataFiles(folder / "digits-many.npz", folder / "digits-few.npz", folder / "digits-test.npz")
    for path, part in zip(paths, (many, few, test), strict=True):
        np.savez_compressed(path, x=images[part], y=labels[part])
    return paths


if __name__ == "__main__":
    for path in write_digits(Path(sys.argv[1] if len(sys.argv) > 1 else ".")):
        print(path)
