"""Tokenizers of folders that the Transformers library wrote, compared with that library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, BertTokenizer

from worker.data.formats.columns import TextSamples
from worker.data.tokens import TextTokenizer, load_tokenizer
from worker.errors import UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["red", "blue", "Red", "e", "é", "cafe", "café", "中", "国", "中国", "##s", "<hole>"]
TEXTS = [
    "red blue",
    "Red café reds",
    "中国 reds",
    "e é É",
    "[MASK] red[SEP]blue",
    "<new> red",
    "a\u0085b red\u2028blue",
]
ADDED = {"content": "<new>", "special": True, "lstrip": False, "rstrip": False, "single_word": False}


def folder_of(folder: Path, vocabulary: str, *, model_type: str | None = "bert", **documents: Any) -> Path:
    """A vocabulary without a `tokenizer.json`, with other JSON files beside it."""
    (folder / "vocab.txt").write_bytes(vocabulary.encode())
    documents |= {} if model_type is None else {"config": {"model_type": model_type}}
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    (row,) = tokenizer.encode(TextSamples([text]), 64).ids.tolist()
    return [number for number in row if number != tokenizer.pad]


def same(folder: Path) -> TextTokenizer:
    """Our tokenizer of the folder, after a comparison with the library's."""
    ours, theirs = load_tokenizer(folder, "teacher.model"), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ids(ours, text) == [number for number in theirs(text)["input_ids"] if number != ours.pad], text
    assert (ours.pad, ours.separator, ours.end) == (theirs.pad_token_id, theirs.sep_token_id, theirs.eos_token_id)
    return ours


@pytest.mark.parametrize("piece", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "a\rb", "", " "])
def test_only_line_feeds_end_a_piece(tmp_path: Path, piece: str) -> None:
    ours = same(folder_of(tmp_path, "\n".join([*SPECIAL, piece, *WORDS]) + "\n"))
    assert ids(ours, "red blue") == [2, 6, 7, 3]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_files_of_other_systems_have_the_same_ids(tmp_path: Path, ending: str, last: str) -> None:
    ours = same(folder_of(tmp_path, ("\n".join([*SPECIAL, *WORDS]) + last).replace("\n", ending)))
    assert ids(ours, "red blue") == [2, 5, 6, 3]


@pytest.mark.parametrize(
    "documents",
    [
        {},
        {"tokenizer_config": {"do_lower_case": False}},
        {"tokenizer_config": {"do_lower_case": True, "strip_accents": False}},
        {"tokenizer_config": {"do_lower_case": False, "strip_accents": True}},
        {"tokenizer_config": {"tokenize_chinese_chars": False}},
        {"tokenizer_config": {"mask_token": "<hole>", "pad_token": "blue"}},
        {"tokenizer_config": {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"17": ADDED}}},
        {"tokenizer_config": {"additional_special_tokens": ["<new>"]}},
        {"special_tokens_map": {"mask_token": "<hole>", "pad_token": "blue"}},
        {"added_tokens": {"<new>": 17}},
    ],
)
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "electra"])
def test_settings_mean_what_they_mean_to_the_library(
    tmp_path: Path, model_type: str, documents: dict[str, Any]
) -> None:
    same(folder_of(tmp_path, "\n".join([*SPECIAL, *WORDS]), model_type=model_type, **documents))


@pytest.mark.parametrize("settings", [{"do_lower_case": False}, {"strip_accents": False, "pad_token": "blue"}])
def test_settings_hold_for_a_saved_tokenizer_too(tmp_path: Path, settings: dict[str, Any]) -> None:
    start = folder_of(tmp_path, "\n".join([*SPECIAL, *WORDS]), tokenizer_config=settings)
    saved = tmp_path / "saved"
    BertTokenizer.from_pretrained(start).save_pretrained(saved)
    (saved / "config.json").write_text('{"model_type": "bert"}')
    assert (saved / "tokenizer.json").is_file()
    same(saved)


@pytest.mark.parametrize("model_type", [None, "albert", "modernbert"])
def test_a_list_of_pieces_is_berts_where_the_network_s_tokenizer_reads_none(
    tmp_path: Path, model_type: str | None
) -> None:
    ours = load_tokenizer(folder_of(tmp_path, "\n".join([*SPECIAL, *WORDS]), model_type=model_type), "teacher.model")
    assert ids(ours, "Red blue") == [2, 5, 6, 3]


def test_tokens_that_a_vocabulary_lacks_are_not_made_up(tmp_path: Path) -> None:
    ours = load_tokenizer(folder_of(tmp_path, "\n".join([*SPECIAL[:4], *WORDS])), "teacher.model")
    assert (ours.vocabulary, ours.mask) == (4 + len(WORDS), None)


@pytest.mark.parametrize("lacking", ["[CLS]", "[SEP]", "[UNK]"])
def test_a_vocabulary_without_a_token_of_every_text_is_refused(tmp_path: Path, lacking: str) -> None:
    pieces = [piece for piece in (*SPECIAL, *WORDS) if piece != lacking]
    with pytest.raises(UserError, match="its vocabulary lacks") as caught:
        load_tokenizer(folder_of(tmp_path, "\n".join(pieces)), "teacher.model")
    assert lacking in caught.value.message


def test_only_config_json_may_name_the_padding(tmp_path: Path) -> None:
    start = folder_of(tmp_path, "\n".join([*SPECIAL, *WORDS]))
    BertTokenizer.from_pretrained(start, pad_token="blue").save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": None}
    (tmp_path / "saved" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "bert", "pad_token_id": 7}')
    assert load_tokenizer(tmp_path / "saved", "teacher.model").pad == 7


def test_code_is_refused_before_the_library_sees_it(tmp_path: Path) -> None:
    settings = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    with pytest.raises(UserError, match="names code"):
        load_tokenizer(folder_of(tmp_path, "\n".join(SPECIAL), tokenizer_config=settings), "teacher.model")


def test_a_saved_copy_plays_the_same_roles(tmp_path: Path) -> None:
    ours = same(folder_of(tmp_path, "\n".join([*SPECIAL, *WORDS]), special_tokens_map={"bos_token": "red"}))
    (tmp_path / "copy").mkdir()
    ours.save(tmp_path / "copy")
    copy = load_tokenizer(tmp_path / "copy", "teacher.model")
    assert (copy.digest, copy.roles) == (ours.digest, ours.roles)
    assert copy.roles["bos_token"] == "red"
