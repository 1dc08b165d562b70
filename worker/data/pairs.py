"""Texts for embeddings: both texts of a pair become consecutive rows.

So models, teachers, cached outputs and most losses work on rows and do not depend on pairs.
"""

from __future__ import annotations

import numpy as np

from worker.data.archive import NDArray
from worker.data.formats.columns import Samples, TextSamples
from worker.data.formats.faults import invalid

SCORE, TEXT = 0, 1
"""Columns of a row's targets: the score of its pair (NaN if there is none), and a number of its text, the same for
equal texts of a file; float32 distinguishes 16,777,216 texts."""


def as_rows(samples: Samples, param: str) -> Samples:
    """Each text as a row, with targets (rows, 2) float32; `rows_per_sample` is 2 for pairs, else 1.

    Raises UserError (`invalid_data`) if the columns have no texts.
    """
    texts = samples.inputs
    if not isinstance(texts, TextSamples):
        raise invalid(f"the columns of {param} have no texts; accepted: one or two columns of texts", param)
    sides = [texts.first] if texts.second is None else [texts.first, texts.second]
    rows = [text for sample in zip(*sides, strict=True) for text in sample]
    numbers: dict[str, int] = {}
    targets = np.array([(np.nan, numbers.setdefault(text, len(numbers))) for text in rows], np.float32)
    scores = np.asarray(samples.labels)
    if scores.shape[1]:
        targets[:, SCORE] = np.repeat(_single(scores, param), len(sides))
    return Samples(TextSamples(rows), targets, rows_per_sample=len(sides))


def _single(scores: NDArray, param: str) -> NDArray:
    if scores.shape[1] != 1:
        raise invalid(f"a score of {param} is {scores.shape[1]} numbers; accepted: one", param)
    return scores[:, 0]
