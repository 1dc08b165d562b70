"""What the job tells of its result: `report.json` for programs, a short model card for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from app.recipe.cost import student_cost
from app.recipe.job import JobSpec
from app.recipe.model import ModelConfig
from app.recipe.plan import TrainingPlan, training_flops
from app.recipe.weights import Weight

Report = dict[str, Any]
Figures = dict[str, Any]


def parameter_count(config: ModelConfig) -> int:
    """Trainable weights of the model that `config` describes."""
    return student_cost(config.architecture, config.input, config.outputs).parameters


def train_figures(
    plan: TrainingPlan, seconds: float, device: torch.device, student: ModelConfig, teachers: Sequence[ModelConfig]
) -> Figures:
    """What the training took; seconds are over all attempts."""
    student_flops = student_cost(student.architecture, student.input, student.outputs)
    teacher_flops = [student_cost(teacher.architecture, teacher.input, teacher.outputs) for teacher in teachers]
    samples = plan.samples_until(plan.total_steps)
    return {
        "steps": plan.total_steps,
        "epochs": plan.epoch_at(plan.total_steps),
        "seconds": seconds,
        "samples_per_second": samples / max(seconds, 1e-9),
        "flops": training_flops(plan, student_flops, teacher_flops),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def model_card(job: JobSpec, report: Report) -> str:
    """Markdown: where the model comes from, how it was trained, what it achieves, how to use it."""
    recipe = job.recipe
    losses = ", ".join(f"{term.kind} (weight {_weight(term.weight)})" for term in recipe.losses)
    names = ", ".join(f"`{teacher.reference}`" for teacher in job.all_teachers)
    lineage = f"distilled from {names}" if names else "trained on labels alone"
    sides = {"student": report["student"], "teacher": report["teacher"]}
    return "\n".join(
        [
            f"# {job.name or job.student.architecture}",
            "",
            f"A `{job.student.architecture}` for {job.task}, {lineage}, on `{job.data.train}`.",
            "",
            f"- losses: {losses}",
            f"- optimizer: {recipe.optimizer.kind}, learning rate {recipe.optimizer.lr:g}, {recipe.schedule.kind}",
            f"- {report['train']['steps']} steps of {recipe.batch_size} samples, {recipe.precision}, seed {job.seed}",
            "",
            f"Measured on {report['samples']['eval']} held-out samples, from the files of this folder:",
            "",
            *_table({side: figures for side, figures in sides.items() if figures}),
            "",
            "`model.onnx`, where there is one, takes raw pixels as float32 `images` (N, C, H, W) and gives `logits`;",
            "the preprocessing is inside. `config.json` describes the weights in `model.safetensors`; `recipe.json` is",
            "the whole job, `report.json` has all figures.",
            "",
        ]
    )


def _weight(weight: Weight) -> str:
    return f"{weight:g}" if isinstance(weight, float | int) else f"{weight.first:g} to {weight.last:g}"


def _table(sides: dict[str, Figures]) -> list[str]:
    names = [name for name, value in sides["student"].items() if isinstance(value, int | float)]
    rows = [f"| {name} | " + " | ".join(_cell(side.get(name)) for side in sides.values()) + " |" for name in names]
    return ["| | " + " | ".join(sides) + " |", "|---" * (len(sides) + 1) + "|", *rows]


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
