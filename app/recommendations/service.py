"""Recommends recipes for a job from the project's past jobs, or from the defaults if these teach too little."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import Invalid
from app.core.field_errors import of_problems
from app.jobs.estimate import forecast
from app.jobs.service import input_facts
from app.recipe.checks import InputFacts
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.derived import network_of
from app.recipe.students.shrink import Unshrinkable
from app.recipe.teachers.teacher import Outside
from app.recommendations import repository
from app.recommendations.candidates import PLACEHOLDER, Candidate, Document, accepted, refusals, with_recipe
from app.recommendations.features import DataFacts, Distillation, ModelFacts
from app.recommendations.past import PastJobFacts, data_set_of, first_teacher, known_before, learnable, reference_of
from app.recommendations.process import Ranking, RegressionFailed, rank
from app.recommendations.schemas import LearnedFromView, RecommendationView, RecommendedRecipeView
from app.recommendations.starting_points import STARTING_POINTS, StartingPoint

log = logging.getLogger(__name__)
MIN_JOBS = 10
"""Fewest past jobs of the task to learn from."""
MIN_DATA_SETS = 3
"""Fewest data sets of these jobs: with one left out, there must be two to compare."""
MAX_TOP = 20
"""Most recipes of one answer."""
SHOWN_JOBS = 10
"""Most jobs that are named with a recipe."""


class Gathered(NamedTuple):
    """What the database knows: the job's inputs, the project's past, and what both say of the job."""

    facts: InputFacts
    past: list[PastJobFacts]
    distillation: Distillation
    """The job's own, without a recipe."""
    notes: list[str]


async def gather(session: AsyncSession, project_id: str, document: Document, outside: Outside) -> Gathered:
    """Read everything that a recommendation needs. Raises `Invalid` with the fields of the job that are not valid with
    any recipe, and `ValidationError`."""
    spec = with_recipe(document, PLACEHOLDER)
    problems, facts = await input_facts(session, project_id, spec, outside)
    if not spec.all_teachers:
        missing = "is required: a recipe is judged by the student's score as a share of its teacher's"
        problems.append(Problem("teacher", missing, "an object with model, hub or uri"))
    if problems:
        raise Invalid.fields(of_problems(problems))
    rows = await repository.past_jobs(session, project_id)
    named = {reference_of(teacher) for row in rows if (teacher := first_teacher(row.spec))}
    wanted = {reference for reference in (*named, spec.all_teachers[0].model) if reference is not None}
    teachers = await repository.teachers(session, project_id, wanted)
    files = {row.spec["data"]["train"] for row in rows} | {spec.data.train}
    digests = await repository.digests(session, project_id, files)
    past = learnable(rows, teachers, digests)
    return await _gathered(session, project_id, spec, facts, past, teachers, digests)


async def _gathered(
    session: AsyncSession,
    project_id: str,
    spec: JobSpec,
    facts: InputFacts,
    past: list[PastJobFacts],
    teachers: Mapping[str, repository.StoredTeacher],
    digests: Mapping[str, str],
) -> Gathered:
    teacher = spec.all_teachers[0].reference
    data_set = data_set_of(spec.task, spec.data.model_dump(mode="json"), digests)
    before, with_teacher = known_before(past, data_set, teacher)
    measured = before.distillation if before and with_teacher else None
    known = None if _unshrinkable(spec, facts) else await forecast(session, project_id, spec, facts)
    config = facts.teachers.get(teacher)
    stored = teachers.get(teacher, repository.StoredTeacher(None, None))
    outputs = config.outputs if config is not None and spec.task_spec.sized_by else None
    data = DataFacts(
        spec.task,
        known.plan.train_samples if known and known.plan else before.distillation.data.samples if before else None,
        before.distillation.data.outputs if before else spec.data.declared_classes or outputs,
        measured.data.embedding if measured else None,
    )
    distillation = Distillation(
        data,
        ModelFacts(stored.network, stored.parameters, measured.teacher.score if measured else None),
        ModelFacts(_network(spec, facts), known.parameters if known else None),
        {},
    )
    return Gathered(facts, past, distillation, list(_notes(data, measured is not None)))


def _unshrinkable(spec: JobSpec, facts: InputFacts) -> bool:
    try:
        network_of(spec, facts.teachers)
    except Unshrinkable:
        return True
    return False


def _network(spec: JobSpec, facts: InputFacts) -> dict[str, Any] | None:
    network = None if _unshrinkable(spec, facts) else network_of(spec, facts.teachers)
    return network.model_dump(mode="json") if network is not None else None


def _notes(data: DataFacts, measured: bool) -> list[str]:
    notes = []
    if not measured:
        notes.append("the teacher's score on the data is unknown: no earlier job used both")
    if data.embedding is None:
        why = "their jobs are of an older version" if measured else "no earlier job used this teacher and this data"
        notes.append(f"the mean embedding of the data by the teacher is unknown: {why}")
    if data.samples is None:
        notes.append("the number of samples is unknown: only a worker can count them")
    return notes


async def recommend(document: Document, found: Gathered, top: int) -> RecommendationView:
    """The best recipes for the job. Raises `Invalid` for a job that is accepted with none of the defaults."""
    task = found.distillation.data.task
    recipes = {job.recipe_key: job.distillation.recipe for job in found.past if job.task == task}
    candidates = await asyncio.to_thread(accepted, document, recipes.values(), found.facts)
    learned = _learned_from(found.past, task)
    if reason := _too_little(learned, candidates):
        return _defaults(document, found, top, learned, reason)
    own = [found.distillation._replace(recipe=each.recipe).features() for each in candidates]
    try:
        ranking = await rank([as_past(job, task) for job in found.past], own)
    except RegressionFailed as error:
        return _defaults(document, found, top, learned, f"the past jobs could not be evaluated: {error}")
    learned = learned.model_copy(update={name: getattr(ranking, name) for name in ranking._fields[1:]})
    if not ranking.rank_correlation or ranking.rank_correlation <= 0.0:
        return _defaults(document, found, top, learned, _unsound(ranking))
    return _best(found, candidates, ranking, top, learned)


def _learned_from(past: Sequence[PastJobFacts], task: str) -> LearnedFromView:
    own = [job for job in past if job.task == task]
    data_sets = {job.data_set for job in own}
    return LearnedFromView(jobs=len(own), data_sets=len(data_sets), job_ids=[job.job_id for job in past])


def _too_little(learned: LearnedFromView, candidates: Sequence[Candidate]) -> str:
    """Why there is too little to learn from; empty: there is enough."""
    if learned.jobs < MIN_JOBS or learned.data_sets < MIN_DATA_SETS:
        return (
            f"there are {learned.jobs} past jobs of this task with a teacher, on {learned.data_sets} data sets; "
            f"needed: {MIN_JOBS} on {MIN_DATA_SETS}"
        )
    if len(candidates) < 2:
        return f"of the recipes of past jobs, {len(candidates)} are accepted for this job; needed: 2"
    return ""


def _unsound(ranking: Ranking) -> str:
    if ranking.rank_correlation is None:
        return "no data set has enough past jobs with different scores to measure whether the order of recipes is right"
    return (
        f"on data sets that were left out, the expected order of past jobs is no better than chance (rank correlation "
        f"{ranking.rank_correlation:.2f})"
    )


def as_past(job: PastJobFacts, task: str) -> dict[str, object]:
    """Fields of `app.recommendations.regression.PastJob`."""
    return {
        "features": job.distillation.features(),
        "new_features": job.distillation.as_of_new_data().features(),
        "ratio": job.ratio,
        "data_set": job.data_set,
        "counts": job.task == task,
    }


def _best(
    found: Gathered, candidates: Sequence[Candidate], ranking: Ranking, top: int, learned: LearnedFromView
) -> RecommendationView:
    task = found.distillation.data.task
    by_recipe: dict[str, list[str]] = {}
    for job in found.past:
        if job.task == task:
            by_recipe.setdefault(job.recipe_key, []).append(job.job_id)
    pairs = sorted(zip(candidates, ranking.predictions, strict=True), key=lambda pair: -pair[1].expected)
    recipes = [
        RecommendedRecipeView(
            recipe=candidate.recipe,
            expected_ratio=expected.expected,
            lowest_ratio=expected.lowest,
            highest_ratio=expected.highest,
            job_ids=by_recipe.get(candidate.key, [])[:SHOWN_JOBS],
        )
        for candidate, expected in pairs[:top]
    ]
    reason = (
        f"gradient boosting over {len(found.past)} past jobs, {learned.jobs} of them of this task on "
        f"{learned.data_sets} data sets; {len(candidates)} of their recipes are accepted for this job"
    )
    return RecommendationView(
        basis="past_jobs", reason=reason, recipes=recipes, learned_from=learned, notes=found.notes
    )


def starting_points(answers: str) -> list[StartingPoint]:
    """The defaults for a task with this kind of output."""
    return [point for point in STARTING_POINTS if point.answers == answers]


def _defaults(
    document: Document, found: Gathered, top: int, learned: LearnedFromView, reason: str
) -> RecommendationView:
    answers = with_recipe(document, PLACEHOLDER).task_spec.answers
    recipes = []
    for point in starting_points(answers):
        for candidate in accepted(document, [point.recipe], found.facts):
            recipes.append(RecommendedRecipeView(recipe=candidate.recipe, reason=point.reason))
    if not recipes:
        raise Invalid.fields(of_problems(refusals(document, starting_points(answers)[0].recipe, found.facts)))
    return RecommendationView(
        basis="defaults", reason=reason, recipes=recipes[:top], learned_from=learned, notes=found.notes
    )
