"""Folders of the library timm: what their `config.json` may say, read as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from app.recipe.students.hugging_face import refuse_code

MODEL_NAME = r"^[a-z0-9][a-z0-9_]{0,95}$"
"""A name without a tag: a tag names weights, and a prefix such as `hf-hub:` a place to fetch them from."""
SET_FROM_THE_JOB = frozenset({"num_classes", "in_chans", "img_size"})
_LOADING = re.compile(
    r"pretrained.*|checkpoint.*|cache_dir|scriptable|exportable|no_jit|features_only|out_indices|.*url"
)
"""Arguments that would load files, or make something else than a classifier."""
MAX_CHARACTERS = 8192


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a timm network unchanged. Raises `ValueError` unless they are plain settings of the network."""
    for key in arguments:
        if key in SET_FROM_THE_JOB:
            raise ValueError(f"{key} is set from the job and its data; leave it out")
        if _LOADING.fullmatch(key):
            raise ValueError(
                f"{key} would load files, or make no classifier; only settings of the network are accepted"
            )
    if len(repr(arguments)) > MAX_CHARACTERS:
        raise ValueError(f"has more than {MAX_CHARACTERS} characters")
    return refuse_code(arguments)


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of timm's, which names its architecture with a word."""
    return isinstance(config.get("architecture"), str)
