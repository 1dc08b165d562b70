"""Hard negatives of queries: the most similar texts that are no positives, without probable positives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.data.mining import Mining
from tests.worker.losses.lists import draw_lists
from worker.data import mining as module
from worker.data.batches import Batch, whole_split
from worker.data.mining import NO_ROW, mine, texts_of, with_negatives
from worker.data.pairs import NEGATIVE, PADDED, PADDING, POSITIVE, QUERY, ROLE, SCORE, TEXT
from worker.data.randomness import generator


def pairs(count: int) -> Batch:
    """Pairs of different texts; a row's only token is its number."""
    rows = torch.arange(2 * count)
    targets = torch.stack([torch.full((2 * count,), 0.5), rows.float(), (rows % 2).float()], 1)
    return whole_split({"tokens": rows.unsqueeze(1)}, targets, rows_per_sample=2)


def lists(lengths: list[int], positives: list[int]) -> Batch:
    labels = draw_lists(lengths, positives)
    tokens = torch.arange(len(labels.labels)).unsqueeze(1)
    return whole_split({"tokens": tokens}, labels.labels.float(), rows_per_sample=labels.size)


def drawn(count: int) -> Tensor:
    return torch.randn(count, 6, generator=generator(0, "mining"))


def plain(samples: Batch, vectors: Tensor, spec: Mining) -> tuple[list[list[int]], list[int]]:
    """The texts of each query's negatives, and how many were filtered, one comparison after the other in float64;
    `vectors` are those of the texts by their numbers."""
    size, targets = samples.rows_per_sample, samples.targets
    directions = F.normalize(vectors.double(), dim=-1)
    found = targets[(targets[:, ROLE] == POSITIVE) | (targets[:, ROLE] == NEGATIVE), TEXT]
    documents = sorted(set(found.int().tolist()))
    negatives, filtered = [], []
    for rows in targets.view(-1, size, 3):
        own = {int(row[TEXT]) for row in rows if row[ROLE] in (QUERY, POSITIVE)}
        cosine = {text: float(directions[int(rows[0, TEXT])] @ directions[text]) for text in documents}
        positive = cosine[int(rows[1, TEXT])]
        limit = {
            "ratio": positive - (1 - spec.ratio) * abs(positive),
            "margin": positive - spec.margin,
            "all": 2.0,
        }[spec.keep]
        others = sorted((text for text in documents if text not in own), key=lambda text: -cosine[text])
        others = others[spec.skip_first :]
        kept = [text for text in others if cosine[text] <= limit]
        negatives.append(kept[: spec.count])
        filtered.append(len(others) - len(kept))
    return negatives, filtered


@pytest.mark.parametrize("keep", [{"keep": "all"}, {"ratio": 0.8}, {"keep": "margin", "margin": 0.2}])
@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("at_once", [1, 2**24])
def test_negatives_are_those_of_a_comparison_one_by_one(
    keep: dict[str, Any], skip: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    spec = Mining(count=3, skip_first=skip, **keep)
    for samples in (pairs(9), lists([3, 5, 2, 4], [1, 2, 1, 1])):
        texts, known = texts_of(samples), samples.targets[:, ROLE] != PADDING
        vectors = drawn(int(samples.targets[known, TEXT].max()) + 1)
        found = mine(samples, texts, vectors[samples.targets[texts.rows, TEXT].long()], spec)
        negatives, filtered = plain(samples, vectors, spec)
        mined = [[int(samples.targets[row, TEXT]) for row in rows if row != NO_ROW] for rows in found.rows]
        assert mined == negatives
        assert found.filtered.tolist() == filtered


def test_equal_texts_are_one_text_and_never_a_negative_of_their_own_query() -> None:
    samples = pairs(4)
    samples.targets[5, TEXT] = samples.targets[1, TEXT]  # two queries with the same positive
    samples.targets[7, TEXT] = samples.targets[0, TEXT]  # the positive of one is the other's query
    texts = texts_of(samples)
    assert len(texts.rows) == 6
    found = mine(samples, texts, drawn(6), Mining(count=8, keep="all"))
    mined = [{int(samples.targets[row, TEXT]) for row in rows if row != NO_ROW} for rows in found.rows]
    assert mined == [{3}, {1, 0}, {3, 0}, {1, 3}]


def test_mined_texts_follow_the_positives_and_lists_are_padded() -> None:
    samples = lists([3, 2, 3], [1, 2, 1])
    negatives = torch.tensor([[5, 10], [9, NO_ROW], [NO_ROW, NO_ROW]])
    found = with_negatives(samples, negatives)
    assert found.rows_per_sample == 4
    there = found.targets[:, ROLE] != PADDING
    assert found.inputs["tokens"][there, 0].tolist() == [0, 1, 5, 10, 4, 5, 6, 9, 8, 9]
    roles = [QUERY, POSITIVE, NEGATIVE, NEGATIVE, QUERY, POSITIVE, POSITIVE, NEGATIVE, QUERY, POSITIVE]
    assert found.targets[:, ROLE].tolist() == [*roles, PADDING, PADDING]
    assert found.targets[~there, TEXT].tolist() == [PADDED, PADDED]
    assert bool(found.targets[found.targets[:, ROLE] == NEGATIVE, SCORE].isnan().all())
    torch.testing.assert_close(found.targets[[1, 5, 6], SCORE], samples.targets[[1, 5, 6], SCORE])
    torch.testing.assert_close(found.targets[there, TEXT], samples.targets[found.inputs["tokens"][there, 0], TEXT])
    assert found.index.tolist() == list(range(12))


def test_pairs_become_lists() -> None:
    found = with_negatives(pairs(2), torch.tensor([[3, NO_ROW], [1, NO_ROW]]))
    assert found.rows_per_sample == 3
    assert found.inputs["tokens"][:, 0].tolist() == [0, 1, 3, 2, 3, 1]
