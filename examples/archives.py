"""Makes the data files of an example from one NumPy archive with `x_train`, `y_train`, `x_test` and `y_test`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np


class DataFiles(NamedTuple):
    """Two archives, each with `x` and `y` as they were."""

    train: Path
    test: Path

    @property
    def counts(self) -> tuple[int, int]:
        """Samples in each."""
        train, test = (len(np.load(path)["y"]) for path in self)
        return train, test


def write_parts(archive: Path, folder: Path, name: str, most: int | None = None) -> DataFiles:
    """Write `NAME.npz` and `NAME-test.npz` to `folder`, of `most` training samples at most (the first ones)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = DataFiles(folder / f"{name}.npz", folder / f"{name}-test.npz")
    with np.load(archive) as arrays:
        for path, part, end in zip(paths, ("train", "test"), (most, None), strict=True):
            np.savez_compressed(path, x=arrays[f"x_{part}"][:end], y=arrays[f"y_{part}"][:end])
    return paths
