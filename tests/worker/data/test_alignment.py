"""Sequences of a teacher with another tokenizer hold the student's text; compared positions have the same prefix."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import tokenizers
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from app.recipe.data.tokenizers import BytePairs
from worker.data import alignment
from worker.data.alignment import aligning, open_aligned, read_both
from worker.data.batches import NEXT, ROWS
from worker.data.documents import read_documents
from worker.data.formats.columns import ChatMessage, Chats, TextSamples
from worker.data.packing import open_packed, packing
from worker.data.tokens import TextTokenizer, train_writer
from worker.tensors import IGNORED

WORDS = ["the cat sat on the mat.\n", "Été: a dog,\n\n  no?", "🙂🙃 日本語 日本", "a  b   c "]
MANY = 10_000
texts = st.lists(st.text(st.sampled_from("the cat\n.,é🙂🙃日本語\u0301A  \t"), max_size=20), min_size=1, max_size=5)


def trained(vocabulary: int, *more: str, lowercase: bool = False) -> TextTokenizer:
    return train_writer(BytePairs(vocabulary=vocabulary, lowercase=lowercase), [*WORDS, *more] * 9)


def trimming() -> TextTokenizer:
    """As GPT-2's is: nothing begins a text, and its post-processor takes spaces out of the offsets."""
    raw = tokenizers.Tokenizer.from_str(trained(600, "then it was")._tokenizer.to_str())
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    return TextTokenizer(raw)


def sentence_pieces() -> TextTokenizer:
    """As Llama's is: spaces are letters, one is put before a text, and unknown characters come as bytes."""
    bytes_ = {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **bytes_}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "▁"), ("a", "t"), ("日", "本")]
    for piece in [*"▁thecatsnomdb.é日本", *("".join(pair) for pair in merges)]:
        vocabulary.setdefault(piece, len(vocabulary))
    raw = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(joined)
    raw.add_special_tokens(["<s>", "</s>"])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return TextTokenizer(raw)


def composing() -> TextTokenizer:
    """As Qwen's is: it joins letters with their accents, and nothing begins a text."""
    raw = tokenizers.Tokenizer.from_str(trained(560)._tokenizer.to_str())
    raw.normalizer = normalizers.NFC()
    raw.post_processor = None
    return TextTokenizer(raw)


def characters() -> TextTokenizer:
    """One token a byte."""
    raw = tokenizers.Tokenizer(models.BPE({**{c: i for i, c in enumerate(ALPHABET)}, "</s>": 256}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(["</s>"])
    return TextTokenizer(raw)


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
READERS = {
    "trained": trained(600, "then it was"),
    "small": trained(520),
    "trimming": trimming(),
    "pieces": sentence_pieces(),
    "composing": composing(),
    "bytes": characters(),
    "lower": trained(560, lowercase=True),
}
PAIRS = [(one, other) for one in READERS for other in READERS if one != other]


class Aligned(NamedTuple):
    tokens: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    share: float
    longest: int


def aligned(given_texts: list[str], student: TextTokenizer, teacher: TextTokenizer, length: int) -> Aligned:
    """All sequences, by way of the files; the texts come in two pieces."""
    return aligned_pieces([TextSamples(given_texts[:1]), TextSamples(given_texts[1:])], student, teacher, length)


def aligned_pieces(
    pieces: Sequence[TextSamples | Chats], student: TextTokenizer, teacher: TextTokenizer, length: int
) -> Aligned:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train"
        with aligning(path, teacher, length) as aligner:
            for both in read_both(pieces, student, teacher, ""):
                aligner.add(both)
        found = open_aligned(path, teacher, length)
    taken = found.take(torch.arange(len(found.rows)))
    tokens, targets, rows = (taken[name + teacher.input_key] for name in ("", NEXT, ROWS))
    return Aligned(tokens, targets, rows, aligner.share, aligner.longest)


def so_far(reader: TextTokenizer, ids: list[int]) -> tuple[int, str]:
    """Texts that were ended, and what is read of the one after them."""
    ended = [place for place, token in enumerate(ids) if token == reader.end]
    after = ids[ended[-1] + 1 :] if ended else ids
    return len(ended), reader.text([token for token in after if token not in reader.begin])


@pytest.mark.parametrize(("one", "other"), PAIRS)
@given(given_texts=texts)
@example(given_texts=["", "a", ""])
@example(given_texts=["🙂 the", " the", "the "])
@example(given_texts=["e\u0301 the cat", "The cat"])
@settings(max_examples=15, deadline=None)
def test_rows_that_are_compared_have_read_the_same(one: str, other: str, given_texts: list[str]) -> None:
    student, teacher = READERS[one], READERS[other]
    found = aligned(given_texts, student, teacher, MANY)
    tokens, _ = packed(given_texts, student, MANY)
    for row, place in enumerate(found.rows[0].tolist()):
        if place >= 0:
            ours = so_far(student, tokens[0, : row + 1].tolist())
            theirs = so_far(teacher, found.tokens[0, : place + 1].tolist())
            assert ours == theirs
            assert given_texts[ours[0]].startswith(ours[1])


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_most_of_a_plain_text_is_compared(one: str, other: str) -> None:
    found = aligned(["the cat sat on the mat.\n", "then it was the cat."], READERS[one], READERS[other], MANY)
    assert found.share > (0.25 if {"bytes", "pieces"} & {one, other} else 0.6)


@pytest.mark.parametrize("together", [1, 1 << 18], ids=["text by text", "at once"])
@given(given_texts=texts, length=st.integers(1, 9), pair=st.sampled_from(PAIRS))
@settings(max_examples=100, deadline=None)
def test_a_teacher_predicts_every_token_of_its_own_once(
    together: int, given_texts: list[str], length: int, pair: tuple[str, str]
) -> None:
    student, teacher = (READERS[name] for name in pair)
    with mock.patch.object(alignment, "TOGETHER", together):
        found = aligned(given_texts, student, teacher, length)
    assert found.rows.shape == packed(given_texts, student, length)[0].shape
    targets = packed(given_texts, teacher, MANY)[1]
    assert found.targets[found.targets != IGNORED].tolist() == targets[targets != IGNORED].tolist()
    both = (found.targets[:, :-1] != IGNORED) & (found.targets[:, 1:] != IGNORED)
    assert found.tokens[:, 1:][both].tolist() == found.targets[:, :-1][both].tolist()


SPACED = ["trained", "small", "trimming", "bytes"]


@pytest.mark.parametrize("other", SPACED)
@pytest.mark.parametrize("one", SPACED)
@given(
    given_texts=st.lists(st.text(st.sampled_from("the cat\n.A "), max_size=30), min_size=1, max_size=4),
    length=st.integers(1, 9),
)
@settings(max_examples=15, deadline=None)
def test_in_a_sequence_the_teacher_reads_what_the_student_reads(
    one: str, other: str, given_texts: list[str], length: int
) -> None:
    student, teacher = READERS[one], READERS[other]
    found = aligned(given_texts, student, teacher, length)
    tokens, _ = packed(given_texts, student, length)
    for sequence, row in (found.rows >= 0).nonzero().tolist():
        ours = so_far(student, tokens[sequence, : row + 1].tolist())
        theirs = so_far(teacher, found.tokens[sequence, : int(found.rows[sequence, row]) + 1].tolist())
        assert theirs[1].endswith(ours[1])
        assert theirs[0] - ours[0] in ((0, 1) if theirs[1] == ours[1] else (0,))


def packed(given_texts: list[str], reader: TextTokenizer, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return packed_pieces([TextSamples(given_texts)], reader, length)


def packed_pieces(
    pieces: Sequence[TextSamples | Chats], reader: TextTokenizer, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train"
        with packing(path, reader.vocabulary, length, int(reader.end or 0)) as packer:
            for document in read_documents(pieces, reader, ""):
                packer.add(document)
        whole = open_packed(path, reader.vocabulary, length, reader.input_key)
    batch = whole.between(0, len(whole))
    return batch.inputs[reader.input_key], batch.targets


def test_sequences_by_hand() -> None:
    """Words against bytes; `|` ends a text, and the teacher's token that a sequence begins within is read whole."""
    words = tokenizers.Tokenizer(
        models.BPE({"a": 0, "b": 1, "</s>": 2, "ab": 3, "abab": 4}, [("a", "b"), ("ab", "ab")])
    )
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words.add_special_tokens(["</s>"])
    letters = tokenizers.Tokenizer(models.BPE({"a": 7, "b": 8, "</s>": 9}, []))
    letters.pre_tokenizer, letters.decoder = words.pre_tokenizer, words.decoder
    letters.add_special_tokens(["</s>"])
    large, small = TextTokenizer(words), TextTokenizer(letters)
    found = aligned(["ababab", "ba"], small, large, 3)  # aba bab |ba
    assert found.tokens.tolist() == [[2, 2, 2], [4, 3, 2], [2, 1, 0]]
    assert found.targets.tolist() == [[IGNORED] * 3, [3, 2, IGNORED], [1, 0, 2]]
    assert found.rows.tolist() == [[-1, -1, -1], [0, -1, 1], [0, 1, 2]]
    assert found.share == pytest.approx(5 / 9)
    back = aligned(["ababab", "ba"], large, small, 2)  # abab ab, | b, a
    assert back.tokens.tolist() == [[7, 8, 7, 8, 7, 8], [9, 8, 9, 9, 9, 9], [7, 9, 9, 9, 9, 9]]
    assert back.rows.tolist() == [[3, 5], [0, 1], [0, -1]]


def test_a_text_that_a_tokenizer_changes_is_not_compared() -> None:
    found = aligned(["The cat", "the cat"], READERS["trained"], READERS["lower"], MANY)
    tokens, _ = packed(["The cat", "the cat"], READERS["trained"], MANY)
    first = tokens[0].tolist().index(READERS["trained"].end)
    assert (found.rows[0, :first] == -1).all()
    assert (found.rows[0, first + 1 : tokens.shape[1]] >= 0).any()


def with_template(name: str, turn: str, asks: str) -> TextTokenizer:
    whole = f"{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{asks}{{% endif %}}"
    return TextTokenizer(READERS[name]._tokenizer, template=whole)


@given(
    said=st.lists(st.tuples(st.text(st.sampled_from("the cat.é🙂 "), max_size=12), st.integers(0, 1)), max_size=5),
    names=st.sampled_from(PAIRS),
)
@settings(max_examples=60, deadline=None)
def test_of_chats_the_same_words_of_an_answer_are_read(said: list[tuple[str, int]], names: tuple[str, str]) -> None:
    """Whatever stands around them, and whether templates strip them."""
    talk = [ChatMessage(("user", "assistant")[learned], words) for words, learned in [*said, ("a cat", 1)]]
    student = with_template(names[0], "<s>{{ m.role }}\n{{ m.content }}</s>\n", "<s>assistant\n")
    teacher = with_template(names[1], "[{{ m.role }}] {{ m.content | trim }}</s>\n", "[assistant] ")
    found = aligned_pieces([Chats([talk])], student, teacher, MANY)
    tokens, targets = packed_pieces([Chats([talk])], student, MANY)
    for row, place in enumerate(found.rows[0].tolist()):
        if place >= 0 and targets[0, row] != IGNORED:
            ours = student.text(tokens[0, : row + 1].tolist()).rpartition("assistant\n")[2]
            theirs = teacher.text(found.tokens[0, : place + 1].tolist()).rpartition("[assistant]")[2]
            assert ours.strip() == theirs.strip()
