"""Writes sentences whose words are tagged with names of persons, places and firms, as data files for the examples.

python examples/tags.py FOLDER

The sentences are made up. Some names are used for persons, places and firms alike, so that only the words around them
tell what they name, and the names of the test set are for the most part not in those to learn from.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TRAIN, TEST = 2000, 400
SENTENCES = (
    "PER moved from LOC to LOC in May .",
    "PER works for ORG , a firm in LOC .",
    "Shares of ORG fell after PER had left .",
    "The mayor of LOC , PER , met the head of ORG .",
    "It rained in LOC all week , said PER .",
    "ORG will close its plant in LOC .",
    "PER and PER founded ORG last year .",
    "The road to LOC is closed .",
    "Nobody at ORG knew why PER was late .",
    "The old man slept while the others went home .",
)
FIRST, ENDS = ("Anna", "Boris", "Carla", "Dilip", "Edith", "Georgia"), ("son", "berg", "mann", "elli", "ov")
SYLLABLES = ("ba", "den", "fo", "gar", "hil", "ka", "lor", "mi", "nes", "ro", "sten", "tu", "vel", "wer")
PLACES, FIRMS = ("ville", "ton", "burg", "stad"), ("Bank", "Motors", "Group", "and Sons")


class DataFiles(NamedTuple):
    """Two files of JSON lines, each line with `words` and as many `tags`."""

    train: Path
    """What teacher and students learn from."""
    test: Path
    """Sentences that nobody learns from."""


def write_tags(folder: Path) -> DataFiles:
    """Make the sentences, always the same ones, and write them to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = DataFiles(folder / "tags.jsonl", folder / "tags-test.jsonl")
    for seed, (path, count) in enumerate(zip(paths, (TRAIN, TEST), strict=True)):
        draw = random.Random(seed)
        rows = (sentence(draw) for _ in range(count))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def sentence(draw: random.Random) -> dict[str, list[str]]:
    """One line of a file."""
    pairs = [pair for word in draw.choice(SENTENCES).split() for pair in tagged(word, draw)]
    return {"words": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]}


def tagged(word: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """A word with its tag, or where it stands for a name the words of one: B- for the first, I- for those behind it."""
    if word not in ("PER", "LOC", "ORG"):
        yield word, "O"
        return
    for place, part in enumerate(name(word, draw).split()):
        yield part, f"{'I' if place else 'B'}-{word}"


def name(kind: str, draw: random.Random) -> str:
    """The name of a person, a place or a firm; a quarter of all could be any of them."""
    stem = "".join(draw.choices(SYLLABLES, k=2)).capitalize()
    if draw.random() < 0.25:
        return draw.choice((stem, "Georgia"))
    ending = {"PER": ENDS, "LOC": PLACES, "ORG": FIRMS}[kind]
    if kind == "PER":
        return f"{draw.choice(FIRST)} {stem}{draw.choice(ending)}"
    return f"{stem} {draw.choice(ending)}" if kind == "ORG" else f"{stem}{draw.choice(ending)}"


if __name__ == "__main__":
    for path in write_tags(Path(sys.argv[1] if len(sys.argv) > 1 else ".")):
        print(path)
