"""Tokenizers: from texts to token ids, by a stored tokenizer or one trained on the job's texts. Nothing is downloaded.

Two models have the same tokens if their tokenizers' digests are the same.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
import torch
from tokenizers import Encoding, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from app.recipe.data.tokenizers import BytePairs, Trained
from app.recipe.students.hugging_face import check_document
from worker.data.archive import NDArray
from worker.data.formats.columns import TextSamples, in_runs
from worker.data.library_tokenizers import BYTE_PAIRS, FILE, SETTINGS, VOCABULARY, open_tokenizer
from worker.data.text_limits import MAX_FILE_BYTES, TRAINED, reading_texts
from worker.errors import UserError, unusable_model
from worker.limits import Subject

ROUND = 8
"""Lengths are rounded up to a multiple of this, for efficiency."""
TEMPLATE = "chat_template.jinja"
USUAL = {
    "pad_token": ("[PAD]", "<pad>", "<|endoftext|>"),
    "mask_token": ("[MASK]", "<mask>"),
    "eos_token": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "unk_token": ("[UNK]", "<unk>"),
}
"""Usual names of the token of each role, for a tokenizer that does not name it."""
NO_WORD = -1
UNKNOWN = "[UNK]"
WORD_CHARACTERS = 100
"""A longer word is unknown to a WordPiece tokenizer."""


class EncodedTexts(NamedTuple):
    """Token ids (N, S) int64, padded; and the number of the word of each token (N, S) int32.

    Words are separated by white space and counted from 0 over a text or a pair; -1: special tokens and padding.
    """

    ids: Tensor
    words: Tensor


class TextTokenizer:
    """Converts texts to token ids, deterministically."""

    subject: Subject = TRAINED
    """Subject of errors if its rules fail or do not end."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        roles: Mapping[str, str] | None = None,
        template: str | None = None,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.template = template
        """Chat template in Jinja; none: there is no support for chats."""
        self.named = {role: token for role, token in (roles or {}).items() if tokenizer.token_to_id(token) is not None}
        """Special tokens by the roles that the tokenizer names."""
        self.roles = _with_usual(tokenizer, self.named)
        """These, and tokens with usual names: `pad_token`, `mask_token`, `eos_token`, …"""
        self._pad, self._mask = self.roles.get("pad_token"), self.roles.get("mask_token")
        content = json.dumps([tokenizer.to_str(), self._pad, self._mask])
        self.digest = sha256(content.encode()).hexdigest()[:16]

    @property
    def input_key(self) -> str:
        """Name of its ids in `Batch.inputs`."""
        return f"tokens:{self.digest}"

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def pad(self) -> int:
        """Id of the padding token; 0 if there is none."""
        return self._id("pad_token") or 0

    @property
    def pads(self) -> bool:
        """Whether it has a padding token."""
        return self._pad is not None

    @property
    def mask(self) -> int | None:
        """Id of the mask token, if there is one."""
        return self._id("mask_token")

    @property
    def end(self) -> int | None:
        """Id of the token that ends a text, if there is one."""
        return self._id("eos_token")

    @property
    def special(self) -> list[int]:
        """Ids of the special tokens, ascending."""
        known = self._tokenizer.get_added_tokens_decoder()
        return sorted(number for number, token in known.items() if token.special)

    @property
    def begin(self) -> list[int]:
        """Ids that the tokenizer puts before a text: one or none."""
        encoded = self._tokenizer.encode("a")
        return encoded.ids[:1] if encoded.special_tokens_mask[:1] == [1] else []

    @cached_property
    def unknown(self) -> int | None:
        """Id of the token for unknown words; none: there is no such token."""
        model = json.loads(self._tokenizer.to_str())["model"]
        name = model.get("unk_token")
        return model.get("unk_id") if name is None else self._tokenizer.token_to_id(name)

    def encode_whole(self, texts: list[str]) -> Iterator[Encoding]:
        """Each text without truncation or special tokens; every character is in a token's offsets."""
        for together in in_runs(texts, len):
            with reading_texts(self.subject, together):
                encodings = self._bare.encode_batch(together, add_special_tokens=False)
            yield from encodings

    @cached_property
    def _bare(self) -> tokenizers.Tokenizer:
        """The tokenizer without its post-processor, which may remove spaces from the offsets."""
        bare = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        bare.post_processor = None
        return bare

    def text(self, ids: list[int]) -> str:
        """The text that token ids decode to."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def reads_like(self, other: TextTokenizer) -> bool:
        """Whether `other`, which may have more tokens, produces the same ids for every text without its additional
        tokens.

        Both have the same rules and pieces, and all added tokens of this one have the same ids there.
        """
        own_rules, other_rules = (json.loads(each._tokenizer.to_str()) for each in (self, other))
        rules = ("model", "normalizer", "pre_tokenizer")
        same = self.digest == other.digest or all(own_rules[rule] == other_rules[rule] for rule in rules)
        return same and all(
            other._tokenizer.token_to_id(token) == i for token, i in self._tokenizer.get_vocab().items()
        )

    @property
    def separator(self) -> int | None:
        """Id of the token that ends each part of a text, if there is one."""
        return self._id("sep_token")

    def _id(self, role: str) -> int | None:
        return self._tokenizer.token_to_id(self.roles[role]) if role in self.roles else None

    def encode(self, texts: TextSamples, length: int) -> EncodedTexts:
        """Ids of all texts, truncated to `length` tokens (the longer text of a pair first) and padded to the
        longest."""
        self._tokenizer.enable_truncation(length)
        try:
            rows = [(row.ids, _words(row, *both)) for row, both in self._encodings(texts)]
        finally:
            self._tokenizer.no_truncation()
        longest = max(len(ids) for ids, _ in rows)
        width = min(length, -(-longest // ROUND) * ROUND)
        ids = np.full((len(rows), width), self.pad, np.int64)
        words = np.full((len(rows), width), NO_WORD, np.int32)
        for index, (own, numbers) in enumerate(rows):
            ids[index, : len(own)], words[index, : len(own)] = own, numbers
        return EncodedTexts(torch.from_numpy(ids), torch.from_numpy(words))

    def _encodings(self, texts: TextSamples) -> Iterator[tuple[Encoding, tuple[str, str]]]:
        both = zip(texts.first, texts.second or [""] * len(texts.first), strict=True)
        for pairs in in_runs(both, lambda pair: len(pair[0]) + len(pair[1])):
            inputs: list[Any] = [first for first, _ in pairs] if texts.second is None else pairs
            with reading_texts(self.subject, chain(*pairs)):
                encodings = self._tokenizer.encode_batch(inputs)
            yield from zip(encodings, pairs, strict=True)

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` and the Transformers library read."""
        self._tokenizer.save(str(folder / FILE))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.roles}
        settings |= {} if self.template is None else {"chat_template": self.template}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _with_usual(tokenizer: tokenizers.Tokenizer, named: Mapping[str, str]) -> dict[str, str]:
    """The named roles, and for all others the token with a usual name, if there is one."""
    known = dict(named)
    for role, names in USUAL.items():
        usual = next((name for name in names if tokenizer.token_to_id(name) is not None), None)
        known |= {role: usual} if usual is not None and role not in known else {}
    return known


def _words(encoding: Encoding, first: str, second: str) -> NDArray:
    """The word number of each token (T,) int32, by its last character, because some tokenizers include the space before
    a word. A token of white space alone belongs to the next word."""
    texts, starts = (first, second), (_starts(first), _starts(second))
    before = (0, len(starts[0]))
    found = np.full(len(encoding.ids), NO_WORD, np.int32)
    for place, (text, (begin, end)) in enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True)):
        if text is not None and end > begin:
            word = bisect_right(starts[text], end - 1) - (not texts[text][begin:end].isspace())
            found[place] = before[text] + max(word, 0) if word < len(starts[text]) else NO_WORD
    return found


def _starts(text: str) -> list[int]:
    """Start positions of the words of a text."""
    spaces = [True, *map(str.isspace, text)]
    return [index for index, character in enumerate(text) if spaces[index] and not character.isspace()]


def load_tokenizer(folder: Path, param: str) -> TextTokenizer:
    """The tokenizer whose files are in `folder`, with the ids and special tokens of the Transformers library.

    Raises UserError (`invalid_teacher` or `invalid_student`) at `param`.
    """
    settings = _settings(folder, param)
    for name in (FILE, VOCABULARY, *BYTE_PAIRS):
        _require_small(folder / name, param)
    template = _template(folder, settings, param)
    try:
        opened = open_tokenizer(folder, settings)
    except Exception as error:  # the libraries raise bare exceptions for invalid files
        raise _unusable(f"has a tokenizer that can't be read: {str(error)[:200]}", param) from error
    if opened is None:
        files = f"{FILE}, {VOCABULARY}, or {' and '.join(BYTE_PAIRS)}"
        raise _unusable(f"has no tokenizer; accepted: {files} beside the weights", param)
    return TextTokenizer(opened.tokenizer, opened.roles, template)


def _unusable(message: str, param: str) -> UserError:
    return unusable_model(message, param)


def _require_small(path: Path, param: str) -> None:
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise _unusable(f"has a {path.name} of more than {MAX_FILE_BYTES} bytes", param)


def _text(path: Path, param: str) -> str:
    _require_small(path, param)
    return path.read_text(encoding="utf-8")


def _settings(folder: Path, param: str) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        return check_document(SETTINGS, path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise _unusable(f"has a {SETTINGS} that is not JSON of plain settings: {error}", param) from error


def _template(folder: Path, settings: dict[str, Any], param: str) -> str | None:
    """The chat template, from a separate file or from the settings; of several, the one called default."""
    if (folder / TEMPLATE).is_file():
        return _text(folder / TEMPLATE, param)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def _between_ends(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    ends = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    return tokenizer


def _like_bert(tokenizer: tokenizers.Tokenizer, lowercase: bool) -> tokenizers.Tokenizer:
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in _BERT_SPECIAL if tokenizer.token_to_id(token) is not None])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


_PRIVATE = 0xF0000
"""First of the 65,534 characters of a plane that no text uses."""
_BERT_SPECIAL = ["[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]"]
_BYTE_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def train_tokenizer(spec: Trained, texts: TextSamples) -> TextTokenizer:
    """A tokenizer trained on these texts; deterministic."""
    made = _train_bytes(spec, _all(texts)) if isinstance(spec, BytePairs) else _train_pieces(spec, texts)
    return TextTokenizer(made)


def train_writer(spec: Trained, texts: Iterable[str]) -> TextTokenizer:
    """A tokenizer for a language model, trained on these texts: it restores texts exactly, and appends nothing, because
    the model continues them. Of the texts only the counts of words are stored."""
    made = _train_bytes(spec, texts, space=False)
    begin = ("<s>", made.token_to_id("<s>"))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    return TextTokenizer(made)


def _all(texts: TextSamples) -> Iterator[str]:
    yield from texts.first
    yield from texts.second or ()


def _train_pieces(spec: Trained, texts: TextSamples) -> tokenizers.Tokenizer:
    """WordPiece by byte pair merging, as in the library, but with the same result in every process.

    The library numbers pieces that continue a word in the order of a hash table with random keys. Here the characters
    inside a word are replaced by private characters for the merging, so that the whole alphabet is known, and sorted,
    before.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=spec.lowercase), pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word for text in _all(texts) for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    alphabet = _alphabet(counts, min(spec.vocabulary // 8, 60_000))
    inner = {character: chr(_PRIVATE + index) for index, character in enumerate(alphabet)}
    merged = tokenizers.Tokenizer(models.BPE())
    merged.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocabulary - len(_BERT_SPECIAL),
        initial_alphabet=[*alphabet, *inner.values()],
        show_progress=False,
    )
    known = ((word, count) for word, count in sorted(counts.items()) if inner.keys() >= set(word))
    merged.train_from_iterator(
        (" ".join([word[0] + "".join(inner[character] for character in word[1:])] * count) for word, count in known),
        trainer,
    )
    outer = {ord(private): character for character, private in inner.items()}
    learned = sorted(merged.get_vocab().items(), key=lambda item: item[1])
    pieces = [("##" if ord(piece[0]) in outer else "") + piece.translate(outer) for piece, _ in learned]
    vocabulary = {piece: index for index, piece in enumerate([*_BERT_SPECIAL, *pieces])}
    model = models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=WORD_CHARACTERS)
    return _like_bert(tokenizers.Tokenizer(model), spec.lowercase)


def _alphabet(counts: Counter[str], most: int) -> list[str]:
    """The most frequent characters, sorted."""
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    chosen = sorted(characters, key=lambda character: (-characters[character], character))
    return sorted(character for character in chosen[:most] if ord(character) < _PRIVATE)


def _train_bytes(spec: Trained, texts: Iterable[str], *, space: bool = True) -> tokenizers.Tokenizer:
    """Byte pair encoding; with `space`, the first word of a text is tokenized like any other."""
    raw = tokenizers.Tokenizer(models.BPE())
    if spec.lowercase:
        raw.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocabulary,
        special_tokens=_BYTE_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return _between_ends(raw)
