"""From texts to token ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.recipe.data.tokenizers import BytePairs, Trained, WordPiece
from worker.data.formats.columns import TextSamples
from worker.data.tokens import load_tokenizer, train_tokenizer
from worker.errors import UserError

TEXTS = TextSamples([f"the quick brown fox number {i} jumps, naïvely, over {i * 7} lazy dogs" for i in range(50)])
SPECS = [WordPiece(vocabulary=200), BytePairs(vocabulary=600)]
AGAIN = """
from app.recipe.data.tokenizers import BytePairs, WordPiece
from tests.worker.data.test_tokens import SPECS, TEXTS
from worker.data.tokens import train_tokenizer
print(*(train_tokenizer(spec, TEXTS).digest for spec in SPECS))
"""


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_ids_are_padded_and_words_are_numbered(spec: Trained) -> None:
    tokenizer = train_tokenizer(spec, TEXTS)
    found = tokenizer.encode(TextSamples(["the  lazy fox", "dogs"]), 32)
    assert found.ids.dtype == torch.int64
    assert found.ids.shape == found.words.shape == (2, 8)
    assert (found.ids[1][found.words[1] == -1][2:] == tokenizer.pad).all()
    assert found.words[0].unique().tolist() == [-1, 0, 1, 2]
    assert found.words[0, 0] == -1
    assert int(found.ids.max()) < tokenizer.vocabulary <= spec.vocabulary
    assert tokenizer.mask is not None


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_pairs_are_one_row_and_long_texts_lose_their_end(spec: Trained) -> None:
    tokenizer = train_tokenizer(spec, TEXTS)
    pair = tokenizer.encode(TextSamples(["the fox"], ["lazy dogs"]), 32)
    assert pair.words[0].unique().tolist() == [-1, 0, 1, 2, 3]
    cut = tokenizer.encode(TEXTS, 10)
    assert cut.ids.shape == (50, 10)
    assert (cut.ids[:, -1] != tokenizer.pad).all()


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("kind", [WordPiece, BytePairs])
def test_capitals_count_only_if_set(kind: type[Trained], lowercase: bool) -> None:
    tokenizer = train_tokenizer(kind(vocabulary=600, lowercase=lowercase), TextSamples(["The fox the FOX É é"] * 5))
    one, other = tokenizer.encode(TextSamples(["FOX É", "fox é"]), 16).ids
    assert torch.equal(one, other) == lowercase


def test_a_piece_continues_a_word(tmp_path: Path) -> None:
    train_tokenizer(WordPiece(vocabulary=64), TextSamples(["abab ababab"] * 3)).save(tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert list(vocabulary)[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"a", "##a", "##b"} <= set(vocabulary)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_what_is_stored_is_what_is_loaded(tmp_path: Path, spec: Trained) -> None:
    made = train_tokenizer(spec, TEXTS)
    made.save(tmp_path)
    loaded = load_tokenizer(tmp_path, "teacher.model")
    assert (loaded.digest, loaded.pad, loaded.mask) == (made.digest, made.pad, made.mask)
    assert torch.equal(loaded.encode(TEXTS, 32).ids, made.encode(TEXTS, 32).ids)
    assert loaded.digest != train_tokenizer(spec, TextSamples(["other words"] * 4)).digest


def test_every_process_makes_the_same_tokenizer_of_the_same_texts() -> None:
    here = " ".join(train_tokenizer(spec, TEXTS).digest for spec in SPECS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", AGAIN], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == here


def test_a_list_of_pieces_is_a_tokenizer_of_bert(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fox", "##es", "the"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = load_tokenizer(tmp_path, "teacher.model")
    assert (tokenizer.vocabulary, tokenizer.pad, tokenizer.mask) == (8, 0, 4)
    assert tokenizer.encode(TextSamples(["The foxes bark"]), 16).ids.tolist() == [[2, 7, 5, 6, 1, 3, 0, 0]]
    pad = {"__type": "AddedToken", "content": "the", "lstrip": False, "normalized": False, "rstrip": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "pad_token": pad}))
    cased = load_tokenizer(tmp_path, "teacher.model")
    assert cased.encode(TextSamples(["The foxes"]), 16).ids.tolist() == [[2, 1, 5, 6, 3, 7, 7, 7]]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer"),
        ({"tokenizer.json": "{}"}, "can't be read"),
        ({"tokenizer.json": "nonsense"}, "can't be read"),
        ({"vocab.txt": "fox\n"}, "can't be read"),
        ({"vocab.txt": "fox\n", "tokenizer_config.json": "{"}, "not JSON"),
    ],
)
def test_a_folder_without_a_sound_tokenizer_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path, "teacher.model")
    assert (caught.value.code, caught.value.param) == ("invalid_teacher", "teacher.model")
