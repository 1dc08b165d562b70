"""What a job will take, told before it runs: steps, parameters, memory and time."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs.schemas import EstimateView
from app.models.tables import Model
from app.recipe.checks import InputFacts
from app.recipe.cost import known_costs, student_cost
from app.recipe.facts import SampleFacts, sample_facts
from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan, plan_training, split_counts, training_flops, training_memory
from app.recipe.shrink import network_of, student_input

ASSUMED_FLOPS_PER_SECOND = 5e9
"""Rate taken while the project has finished no job: two cores on small layers reach about this."""
ASSUMED_CLASSES = 10
"""Taken when only the labels themselves, which are not read before the job runs, tell the number of classes."""
RECENT_JOBS = 20


@dataclass(frozen=True)
class Forecast:
    """What is known of a job before it runs."""

    plan: TrainingPlan
    parameters: int | None
    """Of the student; none when only building it can tell, as then the estimate."""
    estimate: EstimateView | None


async def forecast(session: AsyncSession, project_id: str, spec: JobSpec, facts: InputFacts) -> Forecast | None:
    """Count a job whose inputs were found sound; none when the headers of its data, or a teacher from elsewhere, are
    not known."""
    train = sample_facts(spec.data, spec.task, facts.train)
    held = sample_facts(spec.data, spec.task, facts.eval, "data.eval")
    teachers = [
        facts.teachers[teacher.reference] for teacher in spec.all_teachers if teacher.reference in facts.teachers
    ]
    if not isinstance(train, SampleFacts) or len(teachers) < len(spec.all_teachers):
        return None
    outputs = train.targets or spec.data.told_classes or (teachers[0].outputs if teachers else ASSUMED_CLASSES)
    trained_on, held_out = split_counts(spec.data, train.count)
    if isinstance(held, SampleFacts):
        held_out = held.count
    plan = plan_training(spec.recipe, trained_on)
    network = network_of(spec, facts.teachers)
    student = student_cost(network, student_input(spec, facts.teachers, train.input), outputs) if network else None
    teaching = known_costs([student_cost(teacher.architecture, teacher.input, teacher.outputs) for teacher in teachers])
    if student is None or teaching is None:
        return Forecast(plan, student.parameters if student else None, None)
    rate, basis = await _rate(session, project_id)
    memory = training_memory(spec, student, trained_on + held_out, train.bytes, teaching)
    seconds = training_flops(plan, student, teaching) / rate
    return Forecast(plan, student.parameters, EstimateView(memory_bytes=memory, seconds=seconds, basis=basis))


async def _rate(session: AsyncSession, project_id: str) -> tuple[float, str]:
    """Floating-point operations per second of training, and where the number comes from."""
    made_here = (Model.project_id == project_id, Model.report.is_not(None))
    newest = select(Model.report).where(*made_here).order_by(Model.id.desc()).limit(RECENT_JOBS)
    reports = [report["train"] for report in await session.scalars(newest) if report and "train" in report]
    rates = [train["flops"] / train["seconds"] for train in reports if train["seconds"] > 0]
    if not rates:
        return ASSUMED_FLOPS_PER_SECOND, f"assumed: {ASSUMED_FLOPS_PER_SECOND:.0e} operations a second"
    return statistics.median(rates), f"measured: median rate of the {len(rates)} newest jobs"
