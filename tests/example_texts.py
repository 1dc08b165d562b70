"""Texts in the files that the examples of texts name."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path

GOOD, BAD, OTHER = "good fine great lovely", "bad poor awful dull", "the film was a rather long one and so on"


def write_sentences(path: Path, rows: int) -> None:
    """Rows of a sentence and its label, of which two words tell."""
    draw = random.Random(rows)
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(("sentence", "label"))
        for row in range(rows):
            telling = draw.choices((GOOD if row % 2 else BAD).split(), k=2)
            words = [*telling, *draw.choices(OTHER.split(), k=draw.randint(1, 9))]
            table.writerow((" ".join(draw.sample(words, len(words))), row % 2))


def write_lists(path: Path, rows: int) -> None:
    """Queries with two texts that have words in common with them, and up to three that have none."""
    draw, words = random.Random(rows), [*GOOD.split(), *BAD.split()]
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            query, others = draw.sample(words, 4), draw.sample(OTHER.split(), 4)
            positives = [" ".join([*query[:3], draw.choice(others)]), " ".join([*query[1:], draw.choice(others)])]
            negatives = [" ".join(draw.sample(others, 3)) for _ in range(row % 4)]
            line = {"query": " ".join(query), "positives": positives, "negatives": negatives}
            file.write(json.dumps({**line, "scores": [0.9, 0.8, *[0.1] * len(negatives)]}) + "\n")


def write_articles(path: Path, rows: int) -> None:
    """Texts of a few words, some of which are the names of their labels."""
    draw, names = random.Random(rows), ["politics", "science", "sport"]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            labels = draw.sample(names, draw.randint(0, 2))
            words = [*labels, *draw.sample(OTHER.split(), 4)]
            file.write(json.dumps({"text": " ".join(draw.sample(words, len(words))), "labels": labels}) + "\n")


def write_pairs(path: Path, rows: int) -> None:
    """Rows of two sentences and the share of words that they have in common, from 0 to 5."""
    draw, words = random.Random(rows), [*GOOD.split(), *BAD.split(), *OTHER.split()]
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(("genre", "score", "sentence1", "sentence2"))
        for row in range(rows):
            one, other = draw.sample(words, 5), draw.sample(words, 5)
            shared = [*one[: row % 6], *other[row % 6 :]]
            table.writerow(("main", f"{row % 6}.000", " ".join(one), " ".join(shared)))
