"""Spans of entities, compared with `seqeval` on valid and on invalid sequences."""

from __future__ import annotations

import random
import warnings
from itertools import chain

import pytest
import torch
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from worker.metrics.entities import EntityScores, TagScheme, entity_scores, marks_entities

IOB2 = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-first-name", "I-first-name"]
IOBES = [*IOB2, "E-PER", "S-PER", "E-LOC", "S-LOC"]
PLAIN = ["NOUN", "VERB", "ADJ", "OTHER", "BIT", "IN", "X", ".", "O", "S", "E"]
ODD = ["O", "I-PER", "I-LOC", "B", "I", "B-", "-", "--", "O-PER", ".-PER", "PER"]
SCHEMES = {"iob2": IOB2, "iobes": IOBES, "plain": PLAIN, "odd": ODD, "one": ["I-A", "O"]}
Sentences = list[list[str]]


def drawn(names: list[str], seed: int) -> tuple[Sentences, Sentences]:
    """Random sentences, most of which no rule would allow, and a copy with some of their tags changed."""
    draw = random.Random(seed)
    true = [draw.choices(names, k=draw.choice((1, 1, 2, 5, 12))) for _ in range(draw.randint(1, 12))]
    changed = [[draw.choice(names) if draw.random() < 0.3 else tag for tag in row] for row in true]
    return true, changed


def scored(true: Sentences, predicted: Sentences, names: list[str]) -> tuple[EntityScores, dict[str, EntityScores]]:
    number = {name: index for index, name in enumerate(names)}
    tags, found = (torch.tensor([number[tag] for tag in chain(*rows)]) for rows in (true, predicted))
    return entity_scores(found, tags, torch.tensor([len(row) for row in true]), names)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(40))
def test_scores_are_those_of_seqeval(scheme: str, seed: int) -> None:
    names = SCHEMES[scheme]
    true, predicted = drawn(names, seed)
    total, by_type = scored(true, predicted, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of odd tags, and where it divides by nothing
        ours = (total.precision, total.recall, total.f1)
        theirs = [score(true, predicted) for score in (precision_score, recall_score, f1_score)]
        assert ours == pytest.approx(theirs, abs=1e-12)
        report = classification_report(true, predicted, output_dict=True) if by_type else {}
    kinds = {kind: row for kind, row in report.items() if kind not in ("micro avg", "macro avg", "weighted avg")}
    assert set(by_type) == set(kinds)
    for kind, row in kinds.items():
        own = by_type[kind]
        wanted = [row["precision"], row["recall"], row["f1-score"], row["support"]]
        assert [own.precision, own.recall, own.f1, own.support] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(40))
def test_spans_are_those_of_seqeval(scheme: str, seed: int) -> None:
    names = SCHEMES[scheme]
    rows, _ = drawn(names, seed)
    lengths = torch.tensor([len(row) for row in rows])
    table = TagScheme(names)
    spans = table.spans(torch.tensor([names.index(tag) for tag in chain(*rows)]), lengths)
    ends = spans.ends.nonzero().flatten()
    ours = [(table.types[spans.kinds[end]], int(spans.begins[end]), int(end) - 1) for end in ends]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ours == get_entities(rows)


def test_a_span_counts_where_its_ends_and_its_type_are_right() -> None:
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC"]]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-LOC", "O"]]
    total, by_type = scored(true, predicted, IOB2)
    assert total == EntityScores(1 / 3, 1 / 3, 1 / 3, 3)
    assert by_type == {"LOC": EntityScores(0.0, 0.0, 0.0, 2), "PER": EntityScores(0.5, 1.0, 2 / 3, 1)}


def test_a_broken_sequence_is_read_leniently() -> None:
    total, _ = scored([["B-PER", "I-PER", "B-LOC"]], [["I-PER", "I-PER", "I-LOC"]], IOB2)
    assert total == EntityScores(1.0, 1.0, 1.0, 2)


def test_no_span_goes_on_in_the_next_sentence() -> None:
    total, _ = scored([["B-PER"], ["I-PER"]], [["B-PER"], ["I-PER"]], IOB2)
    assert total.support == 2


def test_without_spans_all_is_zero() -> None:
    assert scored([["O", "O"]], [["O", "O"]], IOB2) == (EntityScores(0.0, 0.0, 0.0, 0), {})


@pytest.mark.parametrize(
    ("names", "marks"),
    [
        (IOB2, True),
        (IOBES, True),
        (["I-A", "I-B"], True),
        (["O"], False),
        (["NOUN", "O"], False),
        (["0", "1"], False),
        (["O", "B-"], False),
        (["O", "B-PER", "X"], False),
    ],
)
def test_tags_of_spans_are_distinguished_from_tags_of_words(names: list[str], marks: bool) -> None:
    assert marks_entities(names) is marks
