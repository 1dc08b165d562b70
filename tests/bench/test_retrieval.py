"""The comparison of losses of retrieval consists of jobs that the contract accepts, and writes its table."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from bench import retrieval as bench

TINY = bench.Size(seeds=2)


@pytest.mark.parametrize("row", bench.LOSSES)
def test_every_row_is_a_job_that_the_contract_accepts(row: str) -> None:
    losses, data = bench.LOSSES[row]
    job = JobSpec.model_validate(bench.claims_job(TINY, 1, losses, data))
    assert not find_problems(job)
    assert bool(job.all_teachers) == ("mined" in row)
    for first in (bench.teacher_job(TINY), bench.start_job(TINY, 1)):
        assert not find_problems(JobSpec.model_validate(first))


def test_a_claim_has_its_abstracts_as_positives(tmp_path: Path) -> None:
    documents = [{"_id": str(number), "title": f"title {number}", "text": f"text {number}"} for number in range(3)]
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(document)}\n" for document in documents)
    for part in ("train", "dev"):
        (tmp_path / f"queries_{part}.jsonl").write_text('{"_id": "7", "text": "claim"}\n{"_id": "8", "text": "no"}\n')
        (tmp_path / f"qrels_{part}.tsv").write_text("query\tdocument\tscore\n7\t2\t1\n7\t0\t1\n")
    out = tmp_path / "out"
    out.mkdir()
    bench.write_files(tmp_path, out)
    (claim,) = [json.loads(line) for line in (out / "claims").read_text().splitlines()]
    assert claim == {"query": "claim", "positives": ["title 2 text 2", "title 0 text 0"], "negatives": []}
    assert len((out / "both").read_text().splitlines()) == 4
    assert len((out / "corpus").read_text().splitlines()) == 3


def test_a_row_has_mean_and_spread_of_every_metric() -> None:
    text = bench.section(TINY, {"mw, mined negatives": [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]}, 90.0)
    assert "| mw, mined negatives | 0.200 ± 0.141 | 0.200 ± 0.000 | 0.200 ± 0.141 |" in text
