"""Sentences with tagged names of persons and places, and jobs on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.worker.training.builders import with_teacher
from worker.protocol import Assignment

Document = dict[str, Any]
SIZES: Document = {"num_attention_heads": 2, "max_position_embeddings": 40}
TEACHER: Document = {
    **{"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
    **SIZES,
}
STUDENT: Document = {**TEACHER, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
DISTILLED: list[Document] = [{"kind": "cross-entropy"}, {"kind": "kd", "temperature": 2.0}]
NAMES = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
TEXTS = 80
PERSONS, PLACES = ["ann", "bob", "carla may", "dieter"], ["new york", "rome", "oslo", "rio de janeiro"]
OTHER = ["the", "man", "saw", "a", "rather", "long", "film", "in", "and", "with", ",", "."]


def rows(count: int = TEXTS, seed: int = 0) -> list[Document]:
    """Texts as lists of words, each with its tag."""
    draw = random.Random(seed)
    return [_row(draw) for _ in range(count)]


def _row(draw: random.Random) -> Document:
    words: list[str] = []
    tags: list[str] = []
    for _ in range(draw.randint(1, 4)):
        words += (others := draw.choices(OTHER, k=draw.randint(1, 3)))
        tags += ["O"] * len(others)
        kind, name = draw.choice([("PER", draw.choice(PERSONS)), ("LOC", draw.choice(PLACES))])
        words += (parts := name.split())
        tags += [f"B-{kind}", *[f"I-{kind}"] * (len(parts) - 1)]
    return {"words": words, "tags": tags}


def write_lines(path: Path, some: list[Document]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return path


def stage(
    folder: Path,
    network: Document,
    teacher: Path | None = None,
    losses: list[Document] | None = None,
    some: list[Document] | None = None,
    **more: Any,
) -> Assignment:
    """Put a job's sentences, and its teacher's files, into `folder`."""
    write_lines(folder / "texts", rows() if some is None else some)
    data = {"format": "jsonl", "train": "texts", "input_columns": ["words"], "label_columns": ["tags"]}
    recipe = {
        "losses": losses or [{"kind": "cross-entropy"}],
        "optimizer": {"kind": "adamw", "lr": 1e-2},
        **{"epochs": 2, "batch_size": 16},
    }
    job: Document = {
        "task": "token-classification",
        "data": {**data, "max_length": 32, **more.pop("data", {})},
        "student": {"architecture": "transformers", "config": network},
        "recipe": recipe | more.pop("recipe", {}),
        "export": ["safetensors"],
        "seed": 1,
    }
    return with_teacher(folder, job | more, teacher)
