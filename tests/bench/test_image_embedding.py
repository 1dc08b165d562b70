"""The comparison of losses of vectors consists of jobs that the contract accepts, and writes its table."""

from __future__ import annotations

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from bench import image_embedding as bench
from bench.quality import DIGITS, Size

TINY = Size(train=40, shrink=1, teacher_epochs=1, epochs=2, seeds=2)
UNSEEN = 5


def test_every_row_is_a_job_that_the_contract_accepts() -> None:
    for row, losses in bench.LOSSES.items():
        job = JobSpec.model_validate(bench.job_of(losses, TINY, UNSEEN, 1, row))
        assert not find_problems(job), row
        assert [term.kind for term in job.recipe.losses] == [loss["kind"] for loss in losses]
        assert bool(job.all_teachers) == any(term.needs_teacher for term in job.recipe.losses)
    by_class = JobSpec.model_validate(bench.job_of([bench.NORMFACE], TINY, UNSEEN, 1, bench.BY_CLASS))
    assert by_class.recipe.samples_per_class == 8


def test_a_row_has_mean_and_spread_of_every_metric() -> None:
    values = [[0.1 * place for place in range(len(bench.METRICS))], [0.2] * len(bench.METRICS)]
    text = bench.section(DIGITS, TINY, {"normface": values}, 90.0, "python -m bench.image_embedding")
    (row,) = [line for line in text.splitlines() if line.startswith("| normface")]
    assert row.startswith("| normface | 0.100 ± 0.141 | 0.150 ± 0.071 |")
    assert row.count("|") == len(bench.METRICS) + 2
