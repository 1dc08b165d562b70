"""From the trained student to its bundle: export, read back, compare, measure, describe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan
from worker.data.batches import Batch
from worker.protocol import Artifact
from worker.students.model import Model
from worker.students.weights import CONFIG, WEIGHTS
from worker.trainer import export
from worker.trainer.evaluate import judge, predict, predict_with
from worker.trainer.report import Figures, Report, model_card, parameter_count, train_figures

BUNDLE = "bundle"
REPORT, RECIPE, CARD = "report.json", "recipe.json", "README.md"
MEDIA_TYPES = {".safetensors": "application/octet-stream", ".json": "application/json", ".md": "text/markdown"}


class Trained(NamedTuple):
    """All that the report tells of."""

    job: JobSpec
    plan: TrainingPlan
    model: Model
    """The live student."""
    teachers: dict[str, tuple[Model, Path]]
    """Their models and files, by their names."""
    seconds: float
    samples: Batch
    """To evaluate on."""
    teacher_logits: Tensor | None
    """On these samples, (N, C) on the CPU."""


def write_bundle(trained: Trained, folder: Path, device: torch.device) -> list[Artifact]:
    """Write `folder/bundle`; every figure of its report is measured on the files just written.

    Raises SystemFault (`export_mismatch`) when a file does not give what the live model gives.
    """
    bundle = folder / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    report = _report(trained, bundle, device)
    (bundle / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (bundle / RECIPE).write_text(trained.job.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (bundle / CARD).write_text(model_card(trained.job, report), encoding="utf-8")
    names = (WEIGHTS, CONFIG, export.ONNX, REPORT, RECIPE, CARD)
    return [_artifact(bundle / name) for name in names if (bundle / name).exists()]


def _report(trained: Trained, bundle: Path, device: torch.device) -> Report:
    live = predict(trained.model, _inputs(trained))
    loaded = export.export_weights(trained.model, bundle, device)
    student: Figures = {"parameters": parameter_count(loaded.config), "bytes": (bundle / WEIGHTS).stat().st_size}
    student |= _figures(trained, WEIGHTS, predict(loaded, _inputs(trained)), live)
    student |= _torch_latency(trained, loaded.cpu())
    if "onnx" in trained.job.export:
        student["onnx"] = _onnx_figures(trained, export.export_onnx(loaded, bundle), bundle, live)
    configs = [model.config for model, _ in trained.teachers.values()]
    train = train_figures(trained.plan, trained.seconds, device, loaded.config, configs)
    teachers = {name: _teacher_figures(trained, *teacher) for name, teacher in trained.teachers.items()}
    return {
        "task": trained.job.task,
        "samples": {"train": trained.plan.train_samples, "eval": len(trained.samples)},
        "classes": loaded.config.classes,
        "student": student,
        "teacher": next(iter(teachers.values()), None),
        "teachers": teachers,
        "train": train,
        "seed": trained.job.seed,
    }


def _figures(trained: Trained, name: str, exported: Tensor, live: Tensor) -> Figures:
    export.require_same(name, exported, live)
    figures = _judge(trained, exported)
    export.require_same_metrics(name, figures, _judge(trained, live), live)
    return dict(figures)


def _onnx_figures(trained: Trained, call: Callable[[Tensor], Tensor], bundle: Path, live: Tensor) -> Figures:
    figures: Figures = {"bytes": (bundle / export.ONNX).stat().st_size}
    figures |= _figures(trained, export.ONNX, predict_with(call, _inputs(trained)), live)
    return figures | {
        "latency_runtime": "onnxruntime",
        **export.latency(call, _one_sample(trained.model, trained.samples)),
    }


def _teacher_figures(trained: Trained, teacher: Model, folder: Path) -> Figures:
    figures: Figures = {"parameters": parameter_count(teacher.config), "bytes": (folder / WEIGHTS).stat().st_size}
    said = predict(teacher, trained.samples.inputs[teacher.view])
    figures |= judge(said, trained.samples.targets, trained.job.evaluation.ece_bins)
    return figures | _torch_latency(trained, teacher.cpu())


def _judge(trained: Trained, logits: Tensor) -> dict[str, float]:
    return judge(logits, trained.samples.targets, trained.job.evaluation.ece_bins, trained.teacher_logits)


def _torch_latency(trained: Trained, model: Model) -> Figures:
    return {"latency_runtime": "torch", **export.latency(model, _one_sample(model, trained.samples))}


def _inputs(trained: Trained) -> Tensor:
    return trained.samples.inputs[trained.model.view]


def _one_sample(model: Model, samples: Batch) -> Tensor:
    return samples.inputs[model.view][:1].cpu()


def _artifact(path: Path) -> Artifact:
    media_type = MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    return Artifact(name=path.name, path=f"{BUNDLE}/{path.name}", media_type=media_type)
