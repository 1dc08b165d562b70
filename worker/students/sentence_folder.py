"""Reads and writes the files of sentence-transformers beside an encoder's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.recipe.students.hugging_face import check_document
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.students.pooling import Embedding
from app.recipe.students.sentence_folder import (
    ENCODER,
    FILES,
    GENERAL,
    MODULES,
    POOLING,
    embedding_of,
    modules_of,
    pooling_of,
    require_modules,
)
from worker.students.faults import InvalidModel


def write(config: ModelConfig, embedding: Embedding, folder: Path) -> None:
    """Write `FILES` into `folder`, which has the network and its tokenizer in the Hugging Face layout."""
    assert isinstance(config.input, TextInput)
    general: dict[str, Any] = {"similarity_fn_name": "cosine", "prompts": {}, "default_prompt_name": None}
    limits = {"max_seq_length": config.input.length, "do_lower_case": False}
    (folder / POOLING).parent.mkdir(exist_ok=True)
    documents = (modules_of(embedding), pooling_of(embedding, config.outputs), limits, general)
    for name, document in zip(FILES, documents, strict=True):
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def is_encoder(folder: Path) -> bool:
    """Whether the folder is of the library sentence-transformers."""
    return (folder / MODULES).is_file()


def read_embedding(folder: Path) -> Embedding:
    """Its pooling and normalisation. Raises InvalidModel, or ValueError for unsupported modules."""
    if not (folder / POOLING).is_file():
        raise InvalidModel(f"{POOLING} is missing, which {MODULES} names")
    modules = require_modules(_read(folder, MODULES).get("modules", []))
    return embedding_of(modules, _read(folder, POOLING), _read(folder, GENERAL))


def longest_text(folder: Path) -> int | None:
    """Most tokens of a text; none: no limit is given. Raises InvalidModel."""
    limits = _read(folder, ENCODER)
    if limits.get("do_lower_case"):
        raise InvalidModel(f"{ENCODER}: do_lower_case is true; accepted: false, with a tokenizer that lowercases texts")
    longest = limits.get("max_seq_length")
    return int(longest) if longest else None


def _read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON document; empty if there is no such file."""
    if not (folder / name).is_file():
        return {}
    try:
        return check_document(name, (folder / name).read_bytes())
    except ValueError as error:
        raise InvalidModel(f"{name}: {error}") from error
