"""Tables and texts, for jobs on other data than images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from app.recipe.tasks.multi_label import MANY_LABELS
from tests.kinds import SAMPLES, SIDE


def write_tables(folder: Path) -> None:
    """Texts of two classes and of any number of labels, a table whose last column is the sum of the others, and images
    with two numbers each."""
    random = np.random.default_rng(0)
    words = [("a good day", "pleased"), ("a bad night", "cross")]
    write_csv(folder / "texts.csv", ("text", "label"), [words[index % 2] for index in range(SAMPLES)])
    sentences = [json.dumps({"words": text.split(), "tags": ["O", "B-MOOD", "O"]}) for text, _ in words]
    (folder / "words.jsonl").write_text("\n".join(sentences[index % 2] for index in range(SAMPLES)) + "\n")
    tags = [["day"], ["night", "bad"], []]
    numbers = [[MANY_LABELS], [0, 1, 2, 3, 4], []]
    lines = [
        json.dumps({"text": words[index % 2][0], "tags": tags[index % 3], "numbers": numbers[index % 3]})
        for index in range(SAMPLES)
    ]
    (folder / "tags.jsonl").write_text("\n".join(lines) + "\n")
    called = [json.dumps({"label": name, "text": f"a {name}"}) for name in ("bad", "day", "night")]
    (folder / "label-texts.jsonl").write_text("\n".join(called) + "\n")
    rows = random.random((SAMPLES, 2))
    write_csv(folder / "table.csv", ("a", "b", "sum"), [(a, b, a + b) for a, b in rows.tolist()])
    images = random.integers(0, 256, (SAMPLES, SIDE, SIDE), dtype=np.uint8)
    np.savez(folder / "numbers.npz", x=images, y=random.random((SAMPLES, 2)))


def write_csv(path: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
