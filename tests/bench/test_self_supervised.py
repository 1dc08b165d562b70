"""The comparison of backbones consists of jobs that the contract accepts, and writes its table."""

from __future__ import annotations

import pytest

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from bench import self_supervised as bench
from bench.quality import DIGITS, Size

TINY = Size(train=40, shrink=1, teacher_epochs=1, epochs=2, seeds=2)


@pytest.mark.parametrize("coloured", [False, True])
def test_every_row_is_a_job_that_the_contract_accepts(coloured: bool) -> None:
    for row in bench.ROWS:
        job = JobSpec.model_validate(bench.job_of(row, TINY, 1, coloured=coloured))
        assert not find_problems(job), row
        assert (job.recipe.pseudo_labels is not None) == ("pseudo labels" in row)
        assert (job.recipe.max_steps == 1) == row.endswith(bench.UNTRAINED)
    assert not find_problems(JobSpec.model_validate(bench.tuning_of(1)))


def test_a_row_has_mean_and_spread_of_every_metric_and_pixels_have_their_probes() -> None:
    values = [[0.1 * place for place in range(len(bench.METRICS))], [0.2] * len(bench.METRICS)]
    pixels = [[0.5, 0.6, 0.7, float("nan"), float("nan")]]
    text = bench.section(
        DIGITS, TINY, {bench.PIXELS: pixels, "ntxent": values}, 90.0, "python -m bench.self_supervised"
    )
    (row,) = [line for line in text.splitlines() if line.startswith("| ntxent")]
    assert row.startswith("| ntxent | 0.100 ± 0.141 | 0.150 ± 0.071 |")
    assert row.count("|") == len(bench.METRICS) + 2
    assert "| pixels | 0.500 | 0.600 | 0.700 |  |  |" in text
