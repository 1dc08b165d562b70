"""From the trained student to its bundle: export, read back, compare, measure, describe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.job import ExportFormat, JobSpec
from app.recipe.model import DESCRIPTIONS
from app.recipe.plan import EVAL_BATCH, TrainingPlan
from app.recipe.report import INT8, ONNX, PROGRAM
from app.recipe.sentence_folder import FILES as FOLDER
from worker.data.batches import Batch
from worker.data.tokens import FILE, SETTINGS, TextTokenizer
from worker.protocol import Artifact
from worker.students import sentence_folder
from worker.students.hugging_face_folder import PREPROCESSOR, write_tokenizer
from worker.students.model import Model
from worker.students.weights import WEIGHTS, weight_files
from worker.trainer import export
from worker.trainer.best import chosen
from worker.trainer.card import model_card
from worker.trainer.curves import draw_curves
from worker.trainer.evaluate import MAIN_METRICS, Call, Judgement, judge, predict, predict_with
from worker.trainer.history import Point
from worker.trainer.measure import BATCH, flops, speed
from worker.trainer.report import Figures, Report, class_figures, epochs_figures, train_figures
from worker.trainer.state import TrainState
from worker.trainer.verify import require_finite, require_same, require_same_metrics

BUNDLE = "bundle"
REPORT, RECIPE, CARD, CURVES = "report.json", "recipe.json", "README.md", "curves.png"
MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown", ".png": "image/png"}
"""By the ending of a file's name; all others are plain bytes."""


class Trained(NamedTuple):
    """All that the report tells of."""

    job: JobSpec
    plan: TrainingPlan
    state: TrainState
    """After its last step and its last evaluation."""
    teachers: dict[str, tuple[Model, Path]]
    """Their models and files, by their names."""
    samples: Batch
    """To evaluate on."""
    teacher_outputs: Tensor | None
    """Of all teachers together on these samples, (N, C) on the CPU."""
    teacher_cache: Figures
    """What was kept of the teachers' answers, by their names."""
    arithmetic: Figures
    """What student and teachers computed in training."""
    tokenizer: TextTokenizer | None = None
    """What the student reads texts with; none: it reads none."""


class _Graph(NamedTuple):
    """How one format is written and opened."""

    key: str
    """In the report."""
    file: str
    runtime: str
    write: Callable[[Model, Path], Call]
    exact: bool = True
    """Whether the file must answer as the live model does."""


GRAPHS: dict[ExportFormat, _Graph] = {
    "onnx": _Graph("onnx", ONNX, "onnxruntime", export.export_onnx),
    "onnx-int8": _Graph("onnx_int8", INT8, "onnxruntime", export.export_int8, exact=False),
    "torch-export": _Graph("torch_export", PROGRAM, "torch", export.export_program),
}
"""In the order in which they are written: the one with 8 bits is made from the one before."""


def write_bundle(trained: Trained, folder: Path, device: torch.device) -> list[Artifact]:
    """Write `folder/bundle`; every figure of its report is measured on the files just written.

    Raises SystemFault (`export_mismatch`) when a file does not give what the live model gives.
    """
    bundle = folder / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    examination = _Examination(trained, bundle, device)
    report = examination.report()
    best = trained.state.best
    draw_curves(trained.state.history.points, bundle / CURVES, best.found.step if best else None)
    (bundle / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (bundle / RECIPE).write_text(trained.job.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (bundle / CARD).write_text(model_card(trained.job, examination.config, report), encoding="utf-8")
    reading = (PREPROCESSOR, FILE, SETTINGS, *FOLDER)
    names = (WEIGHTS, *DESCRIPTIONS, *reading, *(graph.file for graph in GRAPHS.values()), REPORT, CURVES, RECIPE, CARD)
    return [_artifact(bundle, name) for name in names if (bundle / name).exists()]


class _Examination:
    """Writes the student's files into `bundle`, and finds out about each of them what the report tells."""

    def __init__(self, trained: Trained, bundle: Path, device: torch.device) -> None:
        self._trained, self._bundle, self._device = trained, bundle, device
        self._model = chosen(trained.state)
        self._inputs = _fitted(self._model, trained.samples)
        """The graphs take samples of the student's own size."""
        self._live = predict(self._model, self._inputs)
        self._loaded = export.export_weights(self._model, bundle, device)
        self.config = self._loaded.config
        if trained.tokenizer is not None:
            write_tokenizer(trained.tokenizer, self.config, bundle)
        if self.config.embedding is not None:
            sentence_folder.write(self.config, self.config.embedding, bundle)

    def report(self) -> Report:
        """The whole of it."""
        trained, config = self._trained, self.config
        student = self._student()
        teachers = {name: self._teacher(*files) for name, files in trained.teachers.items()}
        costs = [figures["flops"] for figures in teachers.values()]
        return {
            "task": trained.job.task,
            "samples": {"train": trained.plan.train_samples, "eval": trained.samples.samples},
            "classes": config.classes,
            "targets": config.targets,
            "student": student,
            "teacher": next(iter(teachers.values()), None),
            "teachers": teachers,
            "epochs": self._epochs(),
            "per_class": self._classes(),
            "train": train_figures(trained.plan, trained.state.seconds, self._device, student["flops"], costs)
            | trained.arithmetic
            | {"teacher_cache": trained.teacher_cache},
            "seed": trained.job.seed,
        }

    def _student(self) -> Figures:
        figures = self._torch_figures(self._loaded, self._bundle / WEIGHTS)
        figures |= self._exact(WEIGHTS, predict(self._loaded, self._inputs))
        figures |= self._torch_speed(self._loaded)
        for name, graph in GRAPHS.items():
            if name in self._trained.job.export:
                figures[graph.key] = self._graph(graph)
        return figures

    def _graph(self, graph: _Graph) -> Figures:
        call = graph.write(self._loaded.cpu(), self._bundle)
        outputs = predict_with(call, self._inputs)
        figures: Figures = {"bytes": (self._bundle / graph.file).stat().st_size}
        figures |= self._exact(graph.file, outputs) if graph.exact else self._inexact(graph.file, outputs)
        return figures | {"latency_runtime": graph.runtime, **speed(call, self._inputs[:BATCH].cpu())}

    def _exact(self, file: str, outputs: Tensor) -> Figures:
        """Metrics of a file that must answer as the live model does."""
        require_same(file, outputs, self._live)
        found, live, targets = self._judge(outputs), self._judge(self._live), self._trained.samples.targets
        require_same_metrics(file, self._trained.job, found.metrics, live.metrics, self._live, targets)
        return dict(found.metrics)

    def _inexact(self, file: str, outputs: Tensor) -> Figures:
        """Metrics of a file that may answer otherwise, and by how much it does."""
        require_finite(file, outputs)
        figures: Figures = {**self._judge(outputs).metrics}
        figures["max_difference"] = float((outputs - self._live).abs().max())
        if self.config.classes:
            figures["same_choice"] = float((outputs.argmax(-1) == self._live.argmax(-1)).double().mean())
        return figures

    def _teacher(self, teacher: Model, folder: Path) -> Figures:
        figures = self._torch_figures(teacher, *weight_files(folder))
        said = predict(teacher, self._trained.samples.inputs[teacher.view])
        job = self._trained.job
        figures |= judge(job.task, said, self._trained.samples.targets, job.evaluation).metrics
        return figures | self._torch_speed(teacher)

    def _torch_figures(self, model: Model, *weights: Path) -> Figures:
        sample = self._trained.samples.inputs[model.view][:1]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        size = sum(path.stat().st_size for path in weights)
        return {"parameters": parameters, "flops": flops(model, sample), "bytes": size}

    def _torch_speed(self, model: Model) -> Figures:
        """On the CPU, and before that on the GPU where training ran on one. The model is left on the CPU."""
        samples = self._trained.samples.inputs[model.view][:BATCH]
        on_gpu = speed(model, samples, prefix="gpu_") if samples.is_cuda else {}
        return {"latency_runtime": "torch", **speed(model.cpu(), samples.cpu()), **on_gpu}

    def _epochs(self) -> Figures:
        trained, state = self._trained, self._trained.state
        last = self._live if self._model is state.judged else predict(state.judged, self._inputs)
        row = Point(step=state.step, values=self._judge(last).metrics)
        kept, main = trained.job.evaluation.keep, MAIN_METRICS[trained.job.task]
        return epochs_figures(trained.plan, main, kept, row, state.best.found if state.best else row)

    def _classes(self) -> list[Figures] | None:
        outputs = self._trained.teacher_outputs
        teacher = self._judge(outputs).classes if outputs is not None else None
        return class_figures(self._judge(self._live).classes, teacher, self.config.class_names)

    def _judge(self, outputs: Tensor) -> Judgement:
        trained = self._trained
        return judge(
            trained.job.task, outputs, trained.samples.targets, trained.job.evaluation, trained.teacher_outputs
        )


def _fitted(model: Model, samples: Batch) -> Tensor:
    raw = samples.inputs[model.view]
    if model.fit(raw[:1]).shape == raw[:1].shape:
        return raw
    return torch.cat([model.fit(part) for part in torch.split(raw, EVAL_BATCH)])


def _artifact(bundle: Path, name: str) -> Artifact:
    media_type = MEDIA_TYPES.get((bundle / name).suffix, "application/octet-stream")
    return Artifact(name=name, path=f"{BUNDLE}/{name}", media_type=media_type)
