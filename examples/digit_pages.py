"""Writes pages of scikit-learn's handwritten digits as data files for the examples: which digits are on a page?

A page of 16 x 16 pixels has room for four digits, and a place may be empty, so that a page has none to four labels.

python examples/digit_pages.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

TEST_IMAGES = 500
"""Digits that are on no page to learn from."""
PLACES, EMPTY = 4, 0.4
"""Digits that a page has room for, and the share of places without one."""
Array = np.ndarray[Any, np.dtype[Any]]


class PageFiles(NamedTuple):
    """Two archives, each with `x` (N, 16, 16) uint8 and `y` (N, 10) uint8, 1 for each digit on the page."""

    many: Path
    """3,000 pages to learn from."""
    test: Path
    """600 pages of other digits."""


def write_pages(folder: Path) -> PageFiles:
    """Lay the digits out, always in the same way, and write the pages to `folder`."""
    digits = load_digits()
    random = np.random.default_rng(0)
    order = random.permutation(len(digits.target))
    images = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)
    labels = digits.target[order]
    folder.mkdir(parents=True, exist_ok=True)
    paths = PageFiles(folder / "pages-many.npz", folder / "pages-test.npz")
    parts = ((slice(TEST_IMAGES, None), 3000), (slice(TEST_IMAGES), 600))
    for path, (part, pages) in zip(paths, parts, strict=True):
        found, given = lay_out(images[part], labels[part], pages, random)
        np.savez_compressed(path, x=found, y=given)
    return paths


def lay_out(images: Array, labels: Array, pages: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Pages (N, 16, 16) of images (M, 8, 8), and which of the ten labels (N, 10) are on each."""
    chosen = random.integers(len(images), size=(pages, PLACES))
    filled = random.random((pages, PLACES)) > EMPTY
    drawn = images[chosen] * filled[:, :, None, None]
    rows = drawn.reshape(pages, 2, 2, 8, 8).transpose(0, 1, 3, 2, 4)
    given = np.zeros((pages, 10), np.uint8)
    page, place = filled.nonzero()
    given[page, labels[chosen[page, place]]] = 1
    return rows.reshape(pages, 16, 16), given


if __name__ == "__main__":
    for path in write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else ".")):
        print(path)
