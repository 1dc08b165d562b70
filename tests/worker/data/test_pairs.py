"""Texts to embed: read from tables, both texts of a pair as adjacent rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from app.recipe.job import JobSpec
from tests.worker.data.loading import load_task
from worker.data import pairs as pairs_module
from worker.data.batches import Batch, Batches, whole_split
from worker.data.formats.columns import Candidates, Samples, TextSamples
from worker.data.pairs import CORPUS, PADDING, ROLE, as_rows, with_corpus
from worker.data.task_data import TaskData
from worker.errors import UserError

ROWS = [("one two", "two one", 5.0), ("one two", "three", 0.5), ("four", "three", 2.0), ("five six", "seven", 1.0)]
NAMES = ("a", "b", "score")
BERT = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 16}


def pairs(count: int) -> Batch:
    """Rows 0 to 2 count - 1, whose only target is their number."""
    rows = torch.arange(2 * count)
    return whole_split({"tokens": rows.unsqueeze(1)}, rows.unsqueeze(1).float(), rows_per_sample=2)


def write(path: Path, form: str, rows: list[tuple[Any, ...]] = ROWS) -> None:
    if form == "parquet":
        pq.write_table(
            pa.table({name: list(column) for name, column in zip(NAMES, zip(*rows, strict=True), strict=True)}), path
        )
    elif form == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([NAMES, *rows])


def load(folder: Path, form: str = "csv", rows: list[tuple[Any, ...]] = ROWS, **data: Any) -> TaskData:
    write(folder / "file", form, rows)
    table = {"train": "file", "format": form, "input_columns": ["a", "b"], "max_length": 8, **data}
    job = JobSpec.model_validate(
        {
            "task": "embedding",
            "data": table,
            "student": {"architecture": "transformers", "config": BERT},
            "recipe": {"losses": [{"kind": "contrastive"}]},
        }
    )
    return load_task(job, {"file": folder / "file"}, {}, seed=0)


def test_texts_of_a_pair_become_rows_that_share_their_score() -> None:
    found = as_rows(Samples(TextSamples(["x", "y"], ["y", "z"]), np.float32([[0.5], [2.0]])), "data.train")
    assert found.inputs == TextSamples(["x", "y", "y", "z"])
    assert found.rows_per_sample == 2
    np.testing.assert_array_equal(found.labels, [[0.5, 0, 0], [0.5, 1, 1], [2.0, 1, 0], [2.0, 2, 1]])


def test_a_query_and_its_candidates_become_rows_that_are_padded_to_the_longest_list() -> None:
    lists = [Candidates(["y", "z", "x"], 2), Candidates(["y"], 1)]
    found = as_rows(Samples(TextSamples(["x", "v"], candidates=lists), [[0.9, 0.8, 0.1], [0.5]]), "data.train")
    assert found.inputs == TextSamples(["x", "y", "z", "x", "v", "y", "", ""])
    assert found.rows_per_sample == 4
    scores = [np.nan, 0.9, 0.8, 0.1, np.nan, 0.5, np.nan, np.nan]
    np.testing.assert_allclose(found.labels[:, 0], np.float32(scores))
    assert found.labels[:, 1:].tolist() == [[0, 0], [1, 1], [2, 1], [0, 2], [3, 0], [1, 1], [-1, 3], [-1, 3]]
    assert found.notes == ()


def test_lists_of_very_different_lengths_are_noted_and_refused_if_they_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lists = [Candidates(["y"] * 30, 1), *[Candidates(["y"], 1)] * 99]
    samples = Samples(TextSamples(["x"] * 100, candidates=lists), [])
    (note,) = as_rows(samples, "data.train").notes
    assert note.startswith("93% of the rows of data.train fill up lists")
    monkeypatch.setattr(pairs_module, "FEW_ROWS", 100)
    with pytest.raises(UserError, match=r"30 texts, and their mean 1\.3; accepted: lists of similar") as caught:
        as_rows(samples, "data.train")
    assert caught.value.param == "data.candidate_columns"


def test_a_corpus_adds_the_texts_that_no_candidate_has_behind_the_queries() -> None:
    """A query may be a document, too; equal texts have one number."""
    queries = as_rows(Samples(TextSamples(["q"], candidates=[Candidates(["a", "b"], 1)]), []), "data.eval")
    corpus = as_rows(Samples(TextSamples(["b", "c", "q", "c", "d", ""]), np.empty((6, 0), np.float32)), "data.corpus")
    found = with_corpus(queries, corpus)
    assert found.inputs == TextSamples(["q", "a", "b", "c", "q", "d", "", "", ""])
    assert found.rows_per_sample == 3
    expected = [
        [0, 0],
        [1, 1],
        [2, 2],
        [3, CORPUS],
        [0, CORPUS],
        [4, CORPUS],
        [5, CORPUS],
        [-1, PADDING],
        [-1, PADDING],
    ]
    assert found.labels[:, 1:].tolist() == expected


def test_single_texts_have_no_score() -> None:
    found = as_rows(Samples(TextSamples(["x", "y", "x"]), np.empty((3, 0), np.float32)), "data.train")
    assert (found.inputs, found.rows_per_sample) == (TextSamples(["x", "y", "x"]), 1)
    np.testing.assert_array_equal(found.labels, [[np.nan, 0, 0], [np.nan, 1, 0], [np.nan, 0, 0]])


@pytest.mark.parametrize(
    "samples",
    [
        Samples(np.zeros((2, 3), np.float32), np.empty((2, 0), np.float32)),
        Samples(TextSamples(["x"], ["y"]), np.zeros((1, 2), np.float32)),
    ],
)
def test_numbers_for_texts_and_lists_for_scores_are_refused(samples: Samples) -> None:
    with pytest.raises(UserError) as caught:
        as_rows(samples, "data.eval")
    assert (caught.value.code, caught.value.param) == ("invalid_data", "data.eval")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("scores", [[], ["score"]])
def test_every_format_gives_pairs(tmp_path: Path, form: str, scores: list[str]) -> None:
    found = load(tmp_path, form, label_columns=scores, eval="file")
    assert (found.train.samples, len(found.train), found.train.rows_per_sample) == (4, 8, 2)
    expected = [score for *_, score in ROWS for _ in range(2)] if scores else [np.nan] * 8
    np.testing.assert_allclose(found.train.targets[:, 0], expected)
    assert found.train.targets[:, 1].tolist() == [0, 1, 0, 2, 3, 2, 4, 5]
    (tokens,) = found.train.inputs.values()
    assert tokens.shape == (8, 8)
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])


def test_a_pair_is_held_out_as_a_whole(tmp_path: Path) -> None:
    rows = [(f"a{index}", f"b{index}", float(index)) for index in range(20)]
    found = load(tmp_path, rows=rows, label_columns=["score"])
    assert (found.train.samples, found.eval.samples) == (16, 4)
    assert torch.equal(found.train.targets[0::2, 0], found.train.targets[1::2, 0])
    assert torch.equal(found.train.targets[0::2, 1] + 1, found.train.targets[1::2, 1])
    assert found.numbers is not None
    kept, held = found.numbers
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(40))
    assert torch.equal(found.train.index, torch.arange(32))


def test_the_width_of_the_vectors_and_their_making_are_settled_with_the_data(tmp_path: Path) -> None:
    model = load(tmp_path).model
    assert (model.outputs, model.classes, model.target_scaling) == (8, None, None)
    assert model.embedding is not None
    assert (model.embedding.pooling, model.embedding.normalise) == ("mean", False)


def test_batches_keep_pairs_together_and_count_them() -> None:
    batches = Batches(pairs(5), 2, seed=3)
    assert batches.steps_per_epoch == 3
    seen = []
    for step in range(3):
        batch = batches.at(step)
        assert batch.samples == (2 if step < 2 else 1)
        assert torch.equal(batch.index[0::2] + 1, batch.index[1::2])
        assert not (batch.index[0::2] % 2).any()
        assert torch.equal(batch.inputs["tokens"].flatten(), batch.index)
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(10))


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_parts_of_a_batch_tear_no_pair_apart(parts: int) -> None:
    found = list(pairs(5).split(parts))
    assert len(found) == min(parts, 5)
    assert all(len(part) == 2 * part.samples and part.rows_per_sample == 2 for part in found)
    assert torch.equal(torch.cat([part.index for part in found]), torch.arange(10))
    assert max(part.samples for part in found) - min(part.samples for part in found) <= 1


def test_lists_of_candidates_are_held_out_as_a_whole(tmp_path: Path) -> None:
    lists = [(f"q{i}", [f"a{i}", "b", "c"][: 1 + i % 3], None) for i in range(10)]
    found = load(tmp_path, "jsonl", lists, input_columns=["a"], candidate_columns=["b"])
    assert (found.train.samples, found.eval.samples, found.train.rows_per_sample) == (8, 2, 4)
    roles = torch.cat([found.train.targets, found.eval.targets])[:, ROLE].view(10, 4)
    assert (roles[:, 0] == 0).all()
    assert (roles[:, 1] == 1).all()
    assert sorted((roles == PADDING).sum(1).tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
