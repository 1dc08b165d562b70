"""Data files for the examples of face verification: faces drawn of a few strokes, or photographs that you have.

python examples/face_pairs.py FOLDER
python examples/face_pairs.py FOLDER --photographs persons.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from faces import NDArray, draw_images, draw_points, draw_shapes

PERSONS, TEST_PERSONS, PICTURES = 120, 40, 10
PAIRS, TEST_PAIRS = 2000, 1000


class Photographs(NamedTuple):
    """Pictures (N, H, W) or (N, H, W, C) uint8, and numbers (N,) of the persons in them."""

    images: NDArray
    persons: NDArray


def write_face_pairs(folder: Path, train: Photographs, test: Photographs) -> list[Path]:
    """Write `face-persons.npz` with `x` and the persons as `y`, and `face-pairs.npz` and `face-pairs-test.npz` with
    `x`, `other` and `y`: 1 for two pictures of a person, 0 for two persons."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    arrays = {
        "face-persons": {"x": train.images, "y": train.persons.astype(np.int64)},
        "face-pairs": draw_pairs(train, PAIRS, random),
        "face-pairs-test": draw_pairs(test, TEST_PAIRS, random),
    }
    for name, content in arrays.items():
        np.savez_compressed(folder / f"{name}.npz", **content)
    return [folder / f"{name}.npz" for name in arrays]


def draw_pairs(of: Photographs, count: int, random: np.random.Generator) -> dict[str, NDArray]:
    """So many pairs of different pictures; every other one is of one person."""
    usual = [person for person in np.unique(of.persons) if (of.persons == person).sum() > 1]
    same, first, second = np.arange(count) % 2, [], []
    for wanted in same:
        one = random.choice(np.flatnonzero(np.isin(of.persons, usual)))
        alike = of.persons == of.persons[one]
        others = np.flatnonzero(alike if wanted else ~alike)
        first.append(one)
        second.append(random.choice(others[others != one]))
    return {"x": of.images[first], "other": of.images[second], "y": same}


def draw_faces() -> tuple[Photographs, Photographs]:
    """Pictures of persons to learn from and of others, always the same ones."""
    random = np.random.default_rng(0)
    persons = np.repeat(np.arange(PERSONS + TEST_PERSONS), PICTURES)
    shapes = draw_shapes(PERSONS + TEST_PERSONS, random)[persons]
    images = draw_images(draw_points(shapes, random))
    known = persons < PERSONS
    return Photographs(images[known], persons[known]), Photographs(images[~known], persons[~known])


def read_photographs(path: Path) -> tuple[Photographs, Photographs]:
    """Those of an archive with `x_train`, `person_train`, `x_test` and `person_test`."""
    with np.load(path, allow_pickle=False) as archive:
        train, test = ((archive[f"x_{part}"], archive[f"person_{part}"]) for part in ("train", "test"))
    return Photographs(*train), Photographs(*test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes face-persons.npz, face-pairs.npz and face-pairs-test.npz.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument(
        "--photographs",
        type=Path,
        help="archive with x_train, person_train, x_test and person_test, all persons different",
    )
    options = parser.parse_args()
    found = read_photographs(options.photographs) if options.photographs else draw_faces()
    for path in write_face_pairs(options.folder, *found):
        print(path)
