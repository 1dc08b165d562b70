"""Estimates of a job before it runs: steps, parameters, memory and time."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs.schemas.validation import DeviceEstimateView, EstimateView
from app.jobs.tables import PhaseRow
from app.models.tables import ModelRow
from app.recipe.checks import InputFacts
from app.recipe.cost import student_cost
from app.recipe.data.facts import SampleFacts
from app.recipe.data.headers import sample_facts
from app.recipe.data.sources import Texts
from app.recipe.data.tokenizers import Trained
from app.recipe.footprint import Footprint, evaluated, footprints, network_costs, rough_cost
from app.recipe.job import JobSpec
from app.recipe.plan import NetworkCosts, TrainingPlan, kept_back_count, plan_training, split_counts, training_flops
from app.recipe.students.architectures import reads_texts
from app.recipe.students.derived import network_of, student_input
from app.recipe.students.inputs import Input, TextInput
from app.recipe.students.model import ModelConfig

ASSUMED_FLOPS_PER_SECOND = {"cpu": 5e9, "gpu": 5e12}
"""Used until the project has finished a job on such a device; two cores reach about the first on small layers."""
ASSUMED_EXPORT_SECONDS = 10.0
"""Used until the project has finished a job: a small student on two idle cores takes about this."""
DEFAULT_VOCABULARY = 8000
RECENT_JOBS = 20


@dataclass(frozen=True)
class Forecast:
    """Plan and estimates of a job before it runs."""

    plan: TrainingPlan | None
    """None if only a worker can count the samples."""
    parameters: int | None
    """Parameters of the student; none if they are known only after building it."""
    estimate: EstimateView | None


@dataclass(frozen=True)
class _Counted:
    """Samples of a job; none if only a worker can count them."""

    plan: TrainingPlan | None = None
    samples: int = 0
    held_out: int = 0
    sample_bytes: int = 0


@dataclass(frozen=True)
class _Recent:
    """Measurements of the newest jobs of a project."""

    rates: dict[str, list[float]]
    """Floating-point operations per second of training, by device."""
    exports: list[float]
    """Export times in seconds."""


async def forecast(session: AsyncSession, project_id: str, spec: JobSpec, facts: InputFacts) -> Forecast | None:
    """Estimate a job with valid inputs; none if neither its data nor its networks are known yet."""
    known = {
        teacher.name: facts.teachers[teacher.reference]
        for teacher in spec.all_teachers
        if teacher.reference in facts.teachers
    }
    teachers = list(known.values())
    train = sample_facts(spec.data, spec.task_spec, facts.train)
    sample = train.input if isinstance(train, SampleFacts) else _texts(spec, teachers)
    if sample is None or len(teachers) < len(spec.all_teachers):
        return None
    counted = _count(spec, facts, train) if isinstance(train, SampleFacts) else _Counted()
    network = network_of(spec, facts.teachers)
    if network is None or (sample.kind == "texts" and not reads_texts(network)):  # nobody has read a table or images
        return Forecast(counted.plan, None, None)
    shown = train.targets or train.classes if isinstance(train, SampleFacts) else None
    outputs = shown or spec.declared_outputs or (teachers[0].outputs if teachers else spec.task_spec.assumed_outputs)
    given = student_input(spec, facts.teachers, sample)
    exact = student_cost(network, given, outputs) if given.kind != "texts" else None
    student = exact or rough_cost(network, given, outputs)
    costs = None if student is None else network_costs(spec, network, student, known, given, outputs)
    estimate = None
    if costs is not None:
        took = await _recent(session, project_id)
        targets = spec.task_spec.target_bytes(given, outputs)
        sizes = (counted.samples or spec.recipe.batch_size, counted.sample_bytes, targets)
        memory = footprints(spec, network, costs, *sizes)
        estimate = _estimate(spec, counted, costs, took, memory)
    return Forecast(counted.plan, exact.parameters if exact else None, estimate)


def plan_of(spec: JobSpec, facts: InputFacts) -> TrainingPlan | None:
    """The training plan; none if only a worker can count the samples."""
    train = sample_facts(spec.data, spec.task_spec, facts.train)
    return _count(spec, facts, train).plan if isinstance(train, SampleFacts) else None


def _texts(spec: JobSpec, teachers: list[ModelConfig]) -> Input | None:
    """Input of a text student, which does not depend on the texts."""
    if not isinstance(spec.data, Texts):
        return None
    own, known = spec.data.tokenizer, next((each.input for each in teachers if isinstance(each.input, TextInput)), None)
    vocabulary = own.vocabulary if isinstance(own, Trained) else known.vocabulary if known else DEFAULT_VOCABULARY
    return TextInput(length=spec.data.max_length, vocabulary=vocabulary)


def _count(spec: JobSpec, facts: InputFacts, train: SampleFacts) -> _Counted:
    held = sample_facts(spec.data, spec.task_spec, facts.eval, "data.eval")
    trained_on, held_out = split_counts(spec.data, train.count)
    if isinstance(held, SampleFacts):
        held_out = held.count
    plan = plan_training(spec.recipe, trained_on - kept_back_count(spec.recipe, trained_on))
    return _Counted(plan, trained_on + held_out, held_out, train.bytes)


def _estimate(
    spec: JobSpec, counted: _Counted, costs: NetworkCosts, took: _Recent, memory: dict[str, Footprint]
) -> EstimateView:
    devices, rates = [], {}
    for device in ("gpu", "cpu") if spec.resources.queue == "gpu" else ("cpu", "gpu"):
        rates[device], basis = _rate(took, device)
        rows = spec.task_spec.rows_per_sample(spec.data)
        needed = training_flops(counted.plan, spec.recipe, costs, rows) if counted.plan else None
        seconds = None if needed is None else needed / rates[device]
        host, gpu = memory[device]
        devices.append(
            DeviceEstimateView(
                device=device, memory_bytes=host, gpu_memory_bytes=gpu, training_seconds=seconds, basis=basis
            )
        )
    first = devices[0]
    networks = (costs.student, *costs.teachers, *costs.learners)
    eval_flops = evaluated(spec, counted.held_out) * sum(network.flops for network in networks)
    training, evaluating = first.training_seconds, eval_flops / rates[first.device]
    exporting = statistics.median(took.exports) if took.exports else ASSUMED_EXPORT_SECONDS
    return EstimateView(
        memory_bytes=first.memory_bytes,
        seconds=None if training is None else training + evaluating + exporting,
        training_seconds=training,
        evaluating_seconds=None if training is None else evaluating,
        exporting_seconds=exporting,
        basis=first.basis,
        devices=devices,
    )


def _rate(took: _Recent, device: str) -> tuple[float, str]:
    """Floating-point operations per second of training, and the source of the number."""
    if rates := took.rates.get(device):
        return statistics.median(rates), f"measured: median rate of the {len(rates)} newest jobs on a {device.upper()}"
    rate = ASSUMED_FLOPS_PER_SECOND[device]
    return rate, f"assumed: {rate:.0e} operations a second on a {device.upper()}"


async def _recent(session: AsyncSession, project_id: str) -> _Recent:
    made_here = (ModelRow.project_id == project_id, ModelRow.report.is_not(None))
    newest = select(ModelRow.job_id, ModelRow.report).where(*made_here).order_by(ModelRow.id.desc()).limit(RECENT_JOBS)
    rows = (await session.execute(newest)).all()
    rates: dict[str, list[float]] = {}
    for train in (report["train"] for _, report in rows if report and "train" in report):
        if train["seconds"] > 0:
            device = "cpu" if train.get("device", "cpu") == "cpu" else "gpu"
            rates.setdefault(device, []).append(train["flops"] / train["seconds"])
    ids = [job_id for job_id, _ in rows]
    spans = select(PhaseRow.ended_at - PhaseRow.started_at).where(
        PhaseRow.job_id.in_(ids), PhaseRow.phase == "exporting", PhaseRow.ended_at.is_not(None)
    )
    return _Recent(rates, list(await session.scalars(spans)))
