"""Folders of the library timm: rules of their `config.json`, which is read as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from app.recipe.students.hugging_face import refuse_code

MODEL_NAME = r"^[a-z0-9][a-z0-9_]{0,95}$"
"""A name without a tag: a tag names weights, and a prefix such as `hf-hub:` a location to download them from."""
SET_FROM_THE_JOB = frozenset({"num_classes", "in_chans", "img_size"})
_LOADING = re.compile(
    r"pretrained.*|checkpoint.*|cache_dir|scriptable|exportable|no_jit|features_only|out_indices|.*url"
)
"""Arguments that would load files, or build another network than a classifier."""
MAX_CHARACTERS = 8192


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a timm network unchanged. Raises `ValueError` unless they are plain settings of the network."""
    for key in arguments:
        if key in SET_FROM_THE_JOB:
            raise ValueError(f"{key} is set from the job and its data; leave it out")
        if _LOADING.fullmatch(key):
            raise ValueError(f"{key} would load files, or build no classifier; accepted: settings of the network")
    if len(repr(arguments)) > MAX_CHARACTERS:
        raise ValueError(f"has more than {MAX_CHARACTERS} characters")
    return refuse_code(arguments)


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is timm's, in which the architecture is a string."""
    return isinstance(config.get("architecture"), str)
