"""Opens tokenizers of model folders by the Transformers library, so that ids and special tokens are the library's.

The library is offline, runs no code from the folder, and gets local files alone: never a name to look up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from worker.transformers_library import library

FILE, VOCABULARY, SETTINGS, SPECIAL = "tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"
BYTE_PAIRS = ("vocab.json", "merges.txt")
MODEL = "config.json"
_GENERIC = "TokenizersBackend"
"""The library's class that loads a `tokenizer.json` unchanged."""


class Opened(NamedTuple):
    """A tokenizer, and its special tokens by their roles in the library: `pad_token`, `eos_token`, …"""

    tokenizer: tokenizers.Tokenizer
    roles: dict[str, str]


def open_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Opened | None:
    """The tokenizer of `folder`, whose `tokenizer_config.json` has `settings`; none: there is no tokenizer.

    Raises ValueError, or any other error of the library for files that it can't read.
    """
    if not _has_files(folder):
        return None
    kind = _class_of(folder, settings)
    opened = kind.from_pretrained(folder, **_OFFLINE)
    if invented := _invented(opened, _named_roles(folder, settings)):
        _require_marks(opened, invented)
        opened = kind.from_pretrained(folder, **_OFFLINE, **dict.fromkeys(invented))
    roles = {role: str(token) for role, token in opened.special_tokens_map.items() if isinstance(token, str)}
    return Opened(opened.backend_tokenizer, _by_config(opened.backend_tokenizer, roles, folder))


_OFFLINE = {"local_files_only": True, "trust_remote_code": False}


def _has_files(folder: Path) -> bool:
    plain = (folder / FILE).is_file() or (folder / VOCABULARY).is_file()
    return plain or all((folder / name).is_file() for name in BYTE_PAIRS)


def _class_of(folder: Path, settings: Mapping[str, Any]) -> Any:
    """The class by which the library opens the folder; if that one reads none of its files, the one that does."""
    if "tokenizer_class" not in settings and not (folder / MODEL).is_file():
        return _by_files(folder)
    try:
        chosen = type(library().AutoTokenizer.from_pretrained(folder, **_OFFLINE))
    except ValueError:
        if (folder / FILE).is_file():
            raise
        return _by_files(folder)
    if not hasattr(chosen, "backend_tokenizer"):
        raise ValueError(f"{chosen.__name__} is not read; accepted: one that can be saved as {FILE}")
    if (folder / FILE).is_file():
        return chosen if _made_by(chosen, folder) else getattr(library(), _GENERIC)
    read = {name for role, name in chosen.vocab_files_names.items() if role != "tokenizer_file"}
    return chosen if all((folder / name).is_file() for name in read) else _by_files(folder)


def _by_files(folder: Path) -> Any:
    """The class for the files of the folder."""
    if (folder / FILE).is_file():
        return getattr(library(), _GENERIC)
    if (folder / VOCABULARY).is_file():
        return library().BertTokenizer
    pieces = json.loads((folder / BYTE_PAIRS[0]).read_bytes())
    return library().RobertaTokenizer if "<s>" in pieces else library().GPT2Tokenizer


def _made_by(kind: Any, folder: Path) -> bool:
    """Whether the model in `tokenizer.json` has the kind that the class creates from it."""
    if kind.model is None:
        return True
    model = tokenizers.Tokenizer.from_file(str(folder / FILE)).model
    return bool(type(model).__name__ == kind.model.__name__)


def _named_roles(folder: Path, settings: Mapping[str, Any]) -> set[str]:
    """Roles for which the files name a token."""
    path = folder / SPECIAL
    more = json.loads(path.read_bytes()) if path.is_file() else {}
    return {*settings, *(more if isinstance(more, dict) else {})}


def _invented(opened: Any, named: set[str]) -> dict[str, str]:
    """By roles that no file names, the usual tokens that the library has added to a vocabulary without them, and for
    which the network has no rows."""
    known = opened.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    usual = {role: str(token) for role, token in opened.special_tokens_map.items() if role not in named}
    return {role: token for role, token in usual.items() if (opened.convert_tokens_to_ids(token) or 0) >= known}


def _require_marks(opened: Any, lacking: Mapping[str, str]) -> None:
    """Raise ValueError if the vocabulary lacks a token that every text gets, or the one for unknown words."""
    words = type(opened.backend_tokenizer.model).__name__ == "WordPiece"
    for role in ("cls_token", "sep_token", *(["unk_token"] if words else [])):
        if role in lacking:
            raise ValueError(f"its vocabulary lacks {lacking[role]!r}")


def _by_config(tokenizer: tokenizers.Tokenizer, roles: dict[str, str], folder: Path) -> dict[str, str]:
    """Roles with tokens that only `config.json` names added; if both name one, the tokenizer's is used."""
    path = folder / MODEL
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    for role in ("pad_token", "bos_token", "eos_token"):
        number = config.get(f"{role}_id")
        number = number[0] if isinstance(number, list) and number else number
        token = tokenizer.id_to_token(number) if isinstance(number, int) and number >= 0 else None
        if token is not None:
            roles.setdefault(role, token)
    return roles
