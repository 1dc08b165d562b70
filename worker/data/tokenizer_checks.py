"""Checks that tokenizers have tokens for the texts of a job, and that networks have embeddings for the tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from app.recipe.job import JobSpec
from app.recipe.students.model import ModelConfig, TextInput
from worker.data.formats.faults import shown
from worker.data.readers import Readers
from worker.data.tokens import TextTokenizer
from worker.errors import UserError, unusable_model

TEXTS = 256
"""Texts that are checked: evenly spread if the file is in memory, else the first ones."""
CHARACTERS = 2000
"""Characters of each text that are checked."""
UNKNOWN_WARNED, UNKNOWN_REFUSED = 1 / 3, 0.9
"""Shares of unknown words in these texts beyond which there is a warning, or an error if the tokenizer is stored with a
model, because all texts are the same for that model."""
LEAST_USED = 0.5
"""Share of a network's embeddings that its tokenizer should have tokens for; those beyond it are never used."""


def check_tokenizers(
    job: JobSpec, readers: Readers, models: Mapping[str, ModelConfig], texts: Iterable[str]
) -> list[str]:
    """Warnings about the tokenizers of a job with the stored `models`, by reference.

    Raises UserError (`invalid_teacher`, `invalid_student`) for a stored one to which almost all words of the `texts`
    are unknown, or that produces tokens without an embedding in its network.
    """
    sample = [text[:CHARACTERS] for text in islice(texts, TEXTS)]
    stored = {job.teacher_param(index): each.reference for index, each in enumerate(job.all_teachers)}
    tokenizers = {param: readers.by_teacher[reference] for param, reference in stored.items()}
    if job.start is not None:
        stored[job.start_param], tokenizers[job.start_param] = job.start.reference, readers.student
    notes: list[str] = []
    for param, reference in stored.items():
        notes += _fit_notes(tokenizers[param], models[reference], param)
        share, problem = _unknown(tokenizers[param], sample, param)
        if share > UNKNOWN_REFUSED:
            raise unusable_model(f"has a tokenizer that {problem}; accepted: one for texts like these", param)
        notes += [f"{param} has a tokenizer that {problem}"] if share > UNKNOWN_WARNED else []
    if readers.student not in tokenizers.values():
        share, problem = _unknown(readers.student, sample, "data.tokenizer")
        if share > UNKNOWN_WARNED:
            notes.append(
                f"the tokenizer of the student {problem}; a larger data.tokenizer.vocabulary, or bpe, has more"
            )
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
        raise unusable_model(f"has {rows} embeddings for a tokenizer of {tokens} tokens; accepted: {accepted}", param)
    if tokens < LEAST_USED * rows:
        problem = "may not be the one that it was trained with"
        yield f"{param} has a tokenizer of {tokens} tokens for {rows} embeddings: it {problem}"


def _unknown(tokenizer: TextTokenizer, texts: list[str], param: str) -> tuple[float, str]:
    """The share of words that are unknown to a tokenizer, and a text about it."""
    try:
        words = list(_words(tokenizer, texts))
    except UserError:
        raise
    except Exception as error:  # the library raises bare exceptions, such as for a missing token for unknown words
        raise unusable_model(f"has a tokenizer that can't read data.train: {str(error)[:200]}", param) from error
    unknown = [word for word, known in words if not known]
    some = ", ".join(map(shown, list(dict.fromkeys(unknown))[:5]))
    problem = f"has no tokens for {len(unknown)} of {len(words)} words of data.train, such as {some}"
    return len(unknown) / max(1, len(words)), problem


def _words(tokenizer: TextTokenizer, texts: list[str]) -> Iterator[tuple[str, bool]]:
    """The words between white spaces, and whether most of a word's characters are in tokens other than the unknown
    one."""
    for text, encoding in zip(texts, tokenizer.encode_whole(texts), strict=True):
        known = bytearray(len(text))
        for number, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number != tokenizer.unknown:
                known[begin:end] = b"\x01" * (end - begin)
        for word in re.finditer(r"\S+", text):
            yield word[0], 2 * sum(known[word.start() : word.end()]) >= len(word[0])
