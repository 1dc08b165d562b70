"""The files beside an encoder's weights that make its folder one of the library sentence-transformers, too.

`modules.json` lists what a text goes through: the network and its tokenizer in the folder itself, the pooling with its
settings in a folder of its own, and what brings vectors to length 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.recipe.embedding import MODULES, POOLING, Embedding
from app.recipe.model import ModelConfig

ENCODER, GENERAL = "sentence_bert_config.json", "config_sentence_transformers.json"
FILES = (MODULES, POOLING, ENCODER, GENERAL)
"""In the order in which they are told."""
SWITCHES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
"""Settings of the pooling; the library's newer versions read them as the older ones do."""


def write(config: ModelConfig, embedding: Embedding, folder: Path) -> None:
    """Write `FILES` into `folder`, which has the network and its tokenizer in the Hugging Face layout."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if embedding.normalise else [])]
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "", "type": _type(kind)}
        for index, kind in enumerate(kinds)
    ]
    pooling = {"word_embedding_dimension": config.outputs}
    pooling |= {switch: embedding.pooling == name for name, switch in SWITCHES.items()}
    length = getattr(config.input, "length", None)
    general = {"similarity_fn_name": "cosine", "prompts": {}, "default_prompt_name": None}
    (folder / POOLING).parent.mkdir(exist_ok=True)
    for name, document in zip(FILES, (modules, pooling, {"max_seq_length": length}, general), strict=True):
        _write(document, folder / name)


def _type(kind: str) -> str:
    return f"sentence_transformers.models.{kind}"


def _write(document: Any, path: Path) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
