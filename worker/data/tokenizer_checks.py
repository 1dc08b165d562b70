"""Whether tokenizers know the texts of a job, and fit the networks that read their tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Pretrained
from app.recipe.students.model import ModelConfig, TextInput
from worker.data.formats.faults import shown
from worker.data.readers import Readers
from worker.data.tokens import TextTokenizer
from worker.errors import UserError, unusable_model

TEXTS = 256
"""Texts that are looked at, from all over the file where it is in memory, else the first ones."""
CHARACTERS = 2000
"""Of each of them."""
UNKNOWN_WARNED, UNKNOWN_REFUSED = 1 / 3, 0.9
"""Shares of the words of these texts: a tokenizer that does not know so many is warned of, or refused if it is stored
with a model, to which all texts are the same."""
LEAST_USED = 0.5
"""Share of a network's embeddings that its tokenizer should have tokens for; those beyond it are never used."""


def check_tokenizers(
    job: JobSpec, readers: Readers, models: Mapping[str, ModelConfig], texts: Iterable[str]
) -> list[str]:
    """Warnings about the tokenizers of a job, whose stored `models` are known by their references.

    Raises UserError (`invalid_teacher`, `invalid_student`) for a stored one that knows almost no word of the `texts`,
    or gives tokens that its network has no embedding for.
    """
    sample = [text[:CHARACTERS] for text in islice(texts, TEXTS)]
    stored = {job.teacher_param(index): each.reference for index, each in enumerate(job.all_teachers)}
    tokenizers = {param: readers.by_teacher[reference] for param, reference in stored.items()}
    if isinstance(job.student, Pretrained):
        param = f"student.{job.student.source}"
        stored[param], tokenizers[param] = job.student.reference, readers.student
    notes: list[str] = []
    for param, reference in stored.items():
        notes += _fit_notes(tokenizers[param], models[reference], param)
        share, told = _unknown(tokenizers[param], sample, param)
        if share > UNKNOWN_REFUSED:
            raise unusable_model(f"has a tokenizer that {told} (accepted: one made for texts like these)", param)
        notes += [f"{param} has a tokenizer that {told}"] if share > UNKNOWN_WARNED else []
    if readers.student not in tokenizers.values():
        share, told = _unknown(readers.student, sample, "data.tokenizer")
        if share > UNKNOWN_WARNED:
            notes.append(f"the tokenizer of the student {told}; a larger data.tokenizer.vocabulary, or bpe, knows more")
    return notes


def sampled(texts: list[str]) -> list[str]:
    """Some of the texts, evenly chosen."""
    return texts[:: max(1, len(texts) // TEXTS)]


def _fit_notes(tokenizer: TextTokenizer, model: ModelConfig, param: str) -> Iterator[str]:
    if not isinstance(model.input, TextInput):
        return
    tokens, rows = tokenizer.vocabulary, model.input.vocabulary
    if tokens > rows:
        accepted = "the tokenizer that the network was trained with"
        raise unusable_model(f"has {rows} embeddings for a tokenizer of {tokens} tokens (accepted: {accepted})", param)
    if tokens < LEAST_USED * rows:
        told = "may not be the one that it was trained with"
        yield f"{param} has a tokenizer of {tokens} tokens for {rows} embeddings: it {told}"


def _unknown(tokenizer: TextTokenizer, texts: list[str], param: str) -> tuple[float, str]:
    """The share of words that a tokenizer does not know, and what is to be said of it."""
    try:
        words = list(_words(tokenizer, texts))
    except UserError:
        raise
    except Exception as error:  # the library raises bare exceptions, such as for a missing token for unknown words
        raise unusable_model(f"has a tokenizer that can't read data.train: {str(error)[:200]}", param) from error
    unknown = [word for word, known in words if not known]
    some = ", ".join(map(shown, list(dict.fromkeys(unknown))[:5]))
    told = f"does not know {len(unknown)} of {len(words)} words of data.train, such as {some}"
    return len(unknown) / max(1, len(words)), told


def _words(tokenizer: TextTokenizer, texts: list[str]) -> Iterator[tuple[str, bool]]:
    """What stands between white spaces, and whether most of its characters are in tokens that mean them."""
    for text, encoding in zip(texts, tokenizer.encode_whole(texts), strict=True):
        known = bytearray(len(text))
        for number, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number != tokenizer.unknown:
                known[begin:end] = b"\x01" * (end - begin)
        for word in re.finditer(r"\S+", text):
            yield word[0], 2 * sum(known[word.start() : word.end()]) >= len(word[0])
