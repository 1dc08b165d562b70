"""Which token bears the tag of a word: the first one, as the Transformers library tells words of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from app.recipe.data.tokenizers import BytePairs, WordPiece
from tests.worker.tasks.token_classification.sentences import rows
from worker.data.formats.columns import TextSamples
from worker.data.tokens import TextTokenizer, train_tokenizer
from worker.tasks.token_classification.alignment import align_tags, lost_notes, tags_of_pieces
from worker.tasks.token_classification.columns import piece_tags
from worker.tensors import IGNORED

SENTENCES = [
    *(row["words"] for row in rows(20)),
    ["an", "unseenword", "of-several", "pieces.", "in", "it"],
    ["it's", "(odd)", "100%", "a.b.c", "...", "übermäßig"],
]


def tokenizer_of(kind: str) -> TextTokenizer:
    texts = TextSamples([" ".join(words) for words in SENTENCES[:20]])
    spec = WordPiece(vocabulary=80) if kind == "wordpiece" else BytePairs(vocabulary=520)
    return train_tokenizer(spec, texts)


def aligned(reader: TextTokenizer, sentences: list[list[str]], length: int) -> tuple[torch.Tensor, int, int]:
    """Targets where the tag of a word is its number in its sentence."""
    pieces = [piece_tags(words, range(len(words))) for words in sentences]
    tags = torch.tensor([tag for row in pieces for tag in row if tag is not None])
    encoded = reader.encode(TextSamples([" ".join(words) for words in sentences]), length)
    full = (encoded.ids[:, -1] != reader.pad) & (encoded.ids.shape[1] == length)
    begins = [[tag is not None for tag in row] for row in pieces]
    return align_tags(tags_of_pieces(begins, tags, length), encoded.words, full)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("length", [64, 9])
def test_it_is_the_first_token_that_the_library_finds_in_a_word(tmp_path: Path, kind: str, length: int) -> None:
    reader = tokenizer_of(kind)
    reader.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    targets, cut, dropped = aligned(reader, SENTENCES, length)
    kept = 0
    for row, words in enumerate(SENTENCES):
        told = theirs(words, is_split_into_words=True, truncation=True, max_length=length).word_ids()
        wanted = [IGNORED if word is None or word in told[:place] else word for place, word in enumerate(told)]
        found = targets[row].tolist()
        assert found[: len(wanted)] == wanted
        assert set(found[len(wanted) :]) <= {IGNORED}
        kept += sum(tag != IGNORED for tag in wanted)
    assert (cut, dropped) == (sum(map(len, SENTENCES)) - kept, 0)
    assert (cut > 0) == (length == 9)


def test_a_word_of_several_pieces_bears_its_tag_on_the_first() -> None:
    targets, _, _ = aligned(tokenizer_of("wordpiece"), [["the", "new york", "film"]], 32)
    tags = targets[targets != IGNORED].tolist()
    assert tags == [0, 1, 2]
    words = tokenizer_of("wordpiece").encode(TextSamples(["the new york film"]), 32).words
    assert words[targets != IGNORED].tolist() == [0, 1, 3]


def test_words_without_a_token_are_counted_apart_from_those_cut_off() -> None:
    reader = tokenizer_of("wordpiece")
    sentences = [["the", "\u200d", "man"], ["the"] * 40]
    targets, cut, dropped = aligned(reader, sentences, 12)
    assert targets[0][targets[0] != IGNORED].tolist() == [0, 2]
    assert (cut, dropped) == (30, 1)
    assert list(lost_notes(cut, dropped, 43, "data.train")) == [
        "30 of 43 words of data.train are beyond data.max_length, and their tags count for nothing",
        "1 of 43 words of data.train have no token, and their tags count for nothing",
    ]
    assert list(lost_notes(0, 0, 43, "data.train")) == []


def test_a_word_that_loses_its_end_keeps_its_tag() -> None:
    reader = tokenizer_of("wordpiece")
    targets, cut, _ = aligned(reader, [["the", "unseenword"]], 4)
    assert targets[0][targets[0] != IGNORED].tolist() == [0, 1]
    assert cut == 0


def test_pieces_beyond_what_is_read_are_counted_and_not_kept() -> None:
    found = tags_of_pieces([[True, False, True, True], [True]], torch.tensor([5, 6, 7, 8]), 3)
    assert found.tolist() == [[3, 5, IGNORED, 6], [1, 8, IGNORED, IGNORED]]
