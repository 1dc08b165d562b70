"""Texts for embeddings: the texts of a pair, or a query and its candidates, become consecutive rows.

So models, teachers, cached outputs and most losses work on rows and do not depend on samples of several texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from worker.data.archive import NDArray
from worker.data.formats.columns import Samples, TextSamples
from worker.data.formats.faults import invalid

SCORE, TEXT, ROLE = 0, 1, 2
"""Columns of a row's targets: the score of its pair, or its own as a candidate (NaN if there is none); a number of its
text, the same for equal texts of a file (float32 distinguishes 16,777,216 texts); and its role."""
QUERY, POSITIVE, NEGATIVE, PADDING, CORPUS = range(5)
"""Roles of rows: single texts, the first texts of pairs, and queries; second texts of pairs, and positives; negatives;
rows that only fill up a list of candidates, and are ignored; further texts for evaluation."""
PADDED = -1
"""Number of the text of such a row."""
MUCH_PADDING = 0.5
"""Share of such rows above which there is a warning."""
FEW_ROWS, MOST_RATIO = 1_000_000, 8
"""Rows of a file, padding included, that are always accepted, and most rows for each text beyond that."""


def as_rows(samples: Samples, param: str) -> Samples:
    """Each text as a row, with targets (rows, 3) float32; `rows_per_sample` is 2 for pairs, the longest list's length
    plus one for queries with candidates, else 1.

    Raises UserError (`invalid_data`) if the columns have no texts.
    """
    texts = samples.inputs
    if not isinstance(texts, TextSamples):
        raise invalid(f"the columns of {param} have no texts; accepted: one or two columns of texts", param)
    if texts.candidates is not None:
        return _list_rows(texts, samples.labels, param)
    sides = [texts.first] if texts.second is None else [texts.first, texts.second]
    rows = [text for sample in zip(*sides, strict=True) for text in sample]
    targets = np.full((len(rows), 3), np.nan, np.float32)
    targets[:, TEXT] = list(_numbers(rows))
    targets[:, ROLE] = np.tile([QUERY, POSITIVE][: len(sides)], len(texts.first))
    scores = np.asarray(samples.labels)
    if scores.shape[1]:
        targets[:, SCORE] = np.repeat(_single(scores, param), len(sides))
    return Samples(TextSamples(rows), targets, rows_per_sample=len(sides))


def with_corpus(queries: Samples, corpus: Samples) -> Samples:
    """The rows of `queries` and behind them, in samples of as many rows, texts of `corpus` that no candidate has."""
    size, texts, known = queries.rows_per_sample, _texts_of(queries), np.asarray(queries.labels)
    numbers = {text: int(row[TEXT]) for text, row in zip(texts, known, strict=True) if row[ROLE] != PADDING}
    documents = {text for text, row in zip(texts, known, strict=True) if row[ROLE] in (POSITIVE, NEGATIVE)}
    new = [text for text in dict.fromkeys(_texts_of(corpus)) if text not in documents]
    filled = [*new, *[""] * (-len(new) % size)]
    targets = np.full((len(filled), 3), np.nan, np.float32)
    targets[:, TEXT], targets[:, ROLE] = PADDED, PADDING
    targets[: len(new), ROLE] = CORPUS
    targets[: len(new), TEXT] = [numbers.setdefault(text, len(numbers)) for text in new]
    notes = (*queries.notes, *corpus.notes)
    return Samples(TextSamples([*texts, *filled]), np.concatenate([known, targets]), None, size, notes)


def _texts_of(rows: Samples) -> list[str]:
    assert isinstance(rows.inputs, TextSamples)  # `as_rows` has made them
    return rows.inputs.first


def _numbers(rows: Sequence[str]) -> Iterator[int]:
    numbers: dict[str, int] = {}
    return (numbers.setdefault(text, len(numbers)) for text in rows)


def _single(scores: NDArray, param: str) -> NDArray:
    if scores.shape[1] != 1:
        raise invalid(f"a score of {param} is {scores.shape[1]} numbers; accepted: one", param)
    return scores[:, 0]


def _list_rows(texts: TextSamples, scores: Sequence[Sequence[float]] | NDArray, param: str) -> Samples:
    """A query's row, those of its candidates, and padding to the longest list."""
    assert texts.candidates is not None  # the caller has checked it
    width = 1 + max(len(each.texts) for each in texts.candidates)
    _require_similar_lengths(texts, width, param)
    targets = np.full((len(texts.first), width, 3), np.nan, np.float32)
    targets[:, :, ROLE] = PADDING
    rows: list[str] = []
    for sample, (query, (candidates, positives)) in enumerate(zip(texts.first, texts.candidates, strict=True)):
        end = 1 + len(candidates)
        targets[sample, :end, ROLE] = [QUERY, *[POSITIVE] * positives, *[NEGATIVE] * (end - 1 - positives)]
        if len(scores):
            targets[sample, 1:end, SCORE] = scores[sample]
        rows += [query, *candidates, *[""] * (width - end)]
    flat = targets.reshape(-1, 3)
    padding = flat[:, ROLE] == PADDING
    numbers: dict[str, int] = {}
    flat[:, TEXT] = [
        PADDED if empty else numbers.setdefault(text, len(numbers)) for text, empty in zip(rows, padding, strict=True)
    ]
    return Samples(TextSamples(rows), flat, rows_per_sample=width, notes=tuple(_padding_notes(padding, width, param)))


def _require_similar_lengths(texts: TextSamples, width: int, param: str) -> None:
    """Raise UserError (`invalid_data`) if nearly all rows would be padding, which takes memory without end."""
    count = len(texts.first)
    real = count + sum(len(each.texts) for each in texts.candidates or ())
    if count * width > max(FEW_ROWS, MOST_RATIO * real):
        found = (
            f"the longest list of candidates of {param} has {width - 1} texts, and their mean {real / count - 1:.1f}"
        )
        raise invalid(f"{found}; accepted: lists of similar lengths", "data.candidate_columns")


def _padding_notes(padding: NDArray, width: int, param: str) -> Iterator[str]:
    if (share := float(padding.mean())) > MUCH_PADDING:
        yield (
            f"{share:.0%} of the rows of {param} fill up lists of candidates to the longest, of {width - 1}: every "
            "step computes them in vain; lists of similar lengths avoid that"
        )
