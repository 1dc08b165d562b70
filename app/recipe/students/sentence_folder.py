"""Folders of the library sentence-transformers: their files and rules.

`modules.json` lists the modules: the network and its tokenizer in the folder itself, the pooling with its settings in a
subfolder, and the normalisation to length 1. The classes that it names are never loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.recipe.students.pooling import Embedding

MODULES, POOLING = "modules.json", "1_Pooling/config.json"
ENCODER, GENERAL = "sentence_bert_config.json", "config_sentence_transformers.json"
FILES = (MODULES, POOLING, ENCODER, GENERAL)
"""Files, in the order in which they are written."""
CHAIN = ("Transformer", "Pooling", "Normalize")
"""Supported classes of modules, in the only supported order; the last one may be missing."""
LIBRARY = "sentence_transformers."
SWITCHES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
"""Settings of the pooling; newer versions of the library write one value under `pooling_mode`, and read both."""


def modules_of(embedding: Embedding) -> list[dict[str, Any]]:
    """Content of `modules.json` for an encoder."""
    kinds = CHAIN if embedding.normalise else CHAIN[:2]
    return [
        {"idx": index, "name": str(index), "path": _place(index, kind), "type": f"{LIBRARY}models.{kind}"}
        for index, kind in enumerate(kinds)
    ]


def require_modules(modules: Sequence[Any]) -> Sequence[Any]:
    """The list unchanged. Raises `ValueError` unless all modules are supported."""
    for index, module in enumerate(modules):
        kind = CHAIN[index] if index < len(CHAIN) else None
        named = module.get("type") if isinstance(module, Mapping) else None
        if not isinstance(named, str) or not named.startswith(LIBRARY) or named.rpartition(".")[2] != kind:
            raise ValueError(f"has {named!r} as module {index}; accepted: {kind or 'no further module'}")
        if module.get("path") != _place(index, kind):
            raise ValueError(f"has module {index} at {module.get('path')!r}; accepted: {_place(index, kind)!r}")
    if len(modules) < len(CHAIN) - 1:
        raise ValueError(f"has {len(modules)} modules; accepted: {', '.join(CHAIN[:2])}, optionally {CHAIN[2]}")
    return modules


def _place(index: int, kind: str) -> str:
    return f"{index}_{kind}" if index else ""


def pooling_of(embedding: Embedding, width: int) -> dict[str, Any]:
    """Settings of the pooling for an encoder."""
    return {"word_embedding_dimension": width} | {
        switch: embedding.pooling == name for name, switch in SWITCHES.items()
    }


def embedding_of(modules: Sequence[Any], pooling: Mapping[str, Any], general: Mapping[str, Any]) -> Embedding:
    """Pooling and normalisation of a folder's encoder. Raises `ValueError` if they are not supported."""
    if general.get("default_prompt_name") is not None:
        raise ValueError(f"{GENERAL}: default_prompt_name puts words before every text; accepted: null")
    modes = [name.removeprefix("pooling_mode_") for name, on in pooling.items() if name[:13] == "pooling_mode_" and on]
    known = {switch.removeprefix("pooling_mode_"): name for name, switch in SWITCHES.items()}
    modes_set = pooling.get("pooling_mode") or [known.get(mode, mode) for mode in modes] or ["mean"]
    wanted = modes_set if isinstance(modes_set, list) else [modes_set]
    if len(wanted) != 1 or wanted[0] not in list(SWITCHES):  # it may be any JSON value
        raise ValueError(f"{POOLING}: pools by {' and '.join(map(str, wanted))}; accepted: mean, cls")
    return Embedding(pooling=wanted[0], normalise=len(modules) == len(CHAIN))
