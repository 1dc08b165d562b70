"""Writes the bundle of a trained student: exports, loads, compares and measures its files, and describes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.recipe.job import ExportFormat, JobSpec
from app.recipe.plan import TrainingPlan
from app.recipe.report import INT8, INTEGER, ONNX, PROGRAM, SPIKING
from app.recipe.students.exports import TOO_LARGE, exports_of, is_too_large
from app.recipe.students.model import DESCRIPTIONS
from app.recipe.students.sentence_folder import FILES as FOLDER
from worker.bundle import export
from worker.bundle.card import model_card
from worker.bundle.curves import draw_curves
from worker.bundle.integer import export_integer
from worker.bundle.quantisation import graph_tolerance, quantisation_figures, quantisation_of
from worker.bundle.report import Report, class_figures, epochs_figures, origin_figures, train_figures
from worker.bundle.spiking import export_spiking
from worker.bundle.verify import TOLERANCE, allowed_difference, require_finite, require_same, require_same_metrics
from worker.data.batches import Batch
from worker.data.library_tokenizers import FILE, SETTINGS
from worker.data.tokens import TextTokenizer
from worker.diagnostics import Diagnosed, run_diagnostics
from worker.diagnostics.base import HeldOutPart
from worker.errors import SystemFault, UserError
from worker.protocol import BundleFile
from worker.students import sentence_folder
from worker.students.hugging_face import GENERATION
from worker.students.hugging_face_folder import PREPROCESSOR, write_tokenizer
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.weights import WEIGHTS, weight_files
from worker.tasks.base import Call, Figures, NonFiniteOutputs, Predictions, ReportInputs, Task, TaskEvaluator
from worker.training.best import chosen
from worker.training.history import Point
from worker.training.measure import BATCH, flops, speed
from worker.training.state import TrainState

BUNDLE = "bundle"
NO_GRAPH = "its exporter can't trace the network"
REPORT, RECIPE, CARD, CURVES = "report.json", "recipe.json", "README.md", "curves.png"
MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown", ".png": "image/png"}
"""Media types by the suffix of a file; all others are plain bytes."""


class TrainedJob(NamedTuple):
    """Inputs of the bundle and its report."""

    task: Task
    job: JobSpec
    plan: TrainingPlan
    state: TrainState
    """State after the last step and the last evaluation."""
    teachers: dict[str, tuple[Model, Path | None]]
    """Models and folders of the teachers, by name; one that learned together with the student is as it ended, and has
    no folder if it started from random weights."""
    samples: Batch
    """Held-out samples."""
    evaluator: TaskEvaluator
    """Evaluates on these samples, in comparison with the teachers."""
    teacher_cache: Figures
    """Figures of the teacher caches, by the teachers' names."""
    teacher_fidelity: Figures
    """Differences of lowered teachers from their fp32 weights, by name."""
    arithmetic: Figures
    """Floating-point operations of student and teachers in training."""
    untrained_teachers: Mapping[str, Model] = {}
    """Those of the teachers that learned as they are stored, by name."""
    learners: Mapping[str, Model] = {}
    """Networks other than teachers that the training method trained beside the student, by name."""
    tokenizer: TextTokenizer | None = None
    """The student's tokenizer; none: it reads no texts."""
    tokenizers: Mapping[str, TextTokenizer] = {}
    """Tokenizers of a language model's teachers that differ from the student's, by name."""
    sources: Figures = {}
    """Provenance of the inputs, by the path of the field (see `provenance`)."""
    embedding: Figures | None = None
    """Mean embedding of the samples by the first teacher; none: there is no stored teacher."""
    split: Mapping[str, Any] = {}
    """The task's entries of the report about the division of the samples."""
    alignment: Figures = {}
    """Shares of the student's tokens that are aligned with those of these teachers, by name."""
    write_further: Callable[[Path], Sequence[str]] = lambda folder: ()
    """Writes files of the training method into the bundle, and returns their names."""
    train: Batch | None = None
    """Training samples, for diagnostics; none: they are not given."""
    further: Mapping[str, Batch] = {}
    """Samples of the files of diagnostics, by the field that names each."""
    warnings: Sequence[Figures] = ()
    """Warnings of the job: `code` and `message` of each."""


class _Graph(NamedTuple):
    """A format that is written as a graph."""

    key: str
    """Key in the report."""
    file: str
    runtime: str
    write: Callable[[Model, Path], Call]
    exact: bool = True
    """Whether the file must return the live model's outputs."""


GRAPHS: dict[ExportFormat, _Graph] = {
    "onnx": _Graph("onnx", ONNX, "onnxruntime", export.export_onnx),
    "onnx-int8": _Graph("onnx_int8", INT8, "onnxruntime", export.export_int8, exact=False),
    "integer": _Graph("integer", INTEGER, "numpy", export_integer),
    "spiking": _Graph("spiking", SPIKING, "numpy", export_spiking, exact=False),
    "torch-export": _Graph("torch_export", PROGRAM, "torch", export.export_program),
}
"""In the order in which they are written: the one with 8 bits is converted from the one before."""


def require_exportable(job: JobSpec, parameters: int) -> None:
    """Raise UserError (`invalid_job`) for a requested graph that is too large for a single file."""
    if "onnx" in (job.export or ()) and is_too_large(parameters):
        raise UserError("invalid_job", f"export: {TOO_LARGE.format(parameters)}; accepted: safetensors", "export")


def write_bundle(
    trained: TrainedJob,
    folder: Path,
    device: torch.device,
    warn: Callable[[str], None] = lambda _: None,
) -> list[BundleFile]:
    """Write `folder/bundle`, and return the files to publish: of a job that trains nothing, the report and its pictures
    alone. Every figure of its report is measured on the written files. `warn` is called for formats
    that are exported by default and can't be.

    Raises SystemFault (`export_mismatch`) if a file does not return the live model's outputs, and UserError
    (`not_exportable`) if the network can't be exported to a requested format.
    """
    bundle = folder / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    writer = BundleWriter(trained, bundle, device)
    report = writer.report()
    for name, reason in report["left_out"].items():
        warn(f"the student is not exported as {name}: {reason}")
    for warning in writer.diagnosed.warnings:
        warn(warning["message"])
    best = trained.state.best
    draw_curves(trained.state.history.points, bundle / CURVES, best.found.step if best else None)
    (bundle / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (bundle / RECIPE).write_text(trained.job.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (bundle / CARD).write_text(model_card(trained.task, trained.job, writer.config, report), encoding="utf-8")
    settings = (GENERATION, PREPROCESSOR, FILE, SETTINGS, *FOLDER)
    names = (
        WEIGHTS,
        *DESCRIPTIONS,
        *settings,
        *(graph.file for graph in GRAPHS.values()),
        REPORT,
        CURVES,
        RECIPE,
        CARD,
    )
    if not trained.job.recipe.method.trains:
        names = (REPORT, RECIPE)
    names += (*writer.diagnosed.pictures, *trained.write_further(bundle))
    return [_artifact(bundle, name) for name in names if (bundle / name).exists()]


class BundleWriter:
    """Writes the student's files into `bundle`, and measures each of them for the report."""

    def __init__(self, trained: TrainedJob, bundle: Path, device: torch.device) -> None:
        self._trained, self._bundle, self._device = trained, bundle, device
        self._task, self._model = trained.task, chosen(trained.state)
        self._live = trained.evaluator.evaluate(self._model)
        self._loaded = export.export_weights(self._model, bundle, device)
        self.config = self._loaded.config
        parameters = sum(parameter.numel() for parameter in self._loaded.parameters())
        self._exports = exports_of(trained.job, self.config.architecture, parameters)
        if trained.tokenizer is not None:
            write_tokenizer(trained.tokenizer, self.config, bundle)
        if self.config.pooling is not None:
            sentence_folder.write(self.config, self.config.pooling, bundle)
        self.diagnosed = self._diagnose()

    def report(self) -> Report:
        """Export the graphs, and build the content of `report.json`."""
        trained, config, recipe = self._trained, self.config, self._trained.job.recipe
        student = self._student()
        teachers = {name: self._teacher(name, *files) for name, files in trained.teachers.items()}
        learners, passes = self._learners(), recipe.method.learner_passes(recipe)
        learned = {trained.job.trained_teacher, *learners}
        others = {**teachers, **learners}
        learning = self._training_flops(student["flops"], recipe.method.passes(recipe))
        costs = [figures["flops"] * (passes if name in learned else 1) for name, figures in others.items()]
        return {
            "task": trained.job.task,
            "samples": {"train": trained.plan.train_samples, "eval": trained.samples.samples},
            "classes": config.classes,
            "targets": config.targets,
            "student": student,
            "left_out": self._exports.left_out,
            "sources": trained.sources,
            "data": {"embedding": trained.embedding, **trained.split},
            "origin": origin_figures(
                trained.job, {name: model.config for name, (model, _) in trained.teachers.items()}
            ),
            "teacher": next(iter(teachers.values()), None),
            "teachers": teachers,
            **({"learners": learners} if learners else {}),
            **({"quantisation": quantisation} if (quantisation := self._quantisation()) else {}),
            "epochs": self._epochs(),
            "per_class": self._classes(),
            "diagnostics": self.diagnosed.figures,
            "train": train_figures(trained.plan, trained.state.seconds, self._device, learning, costs)
            | trained.arithmetic
            | {"teacher_cache": trained.teacher_cache, "teacher_fidelity": trained.teacher_fidelity},
            "seed": trained.job.seed,
            "warnings": [*trained.warnings, *self.diagnosed.warnings],
            **self._live.evaluation.figures,
            **self._task.report_figures(self._inputs()),
        }

    def _quantisation(self) -> Figures:
        """Figures of the quantisation; empty if there is none."""
        samples = self._loaded.cpu().fit(self._graph_samples().cpu())
        return quantisation_figures(self._loaded, self._trained.evaluator, samples, self._bundle)

    def _graph_samples(self) -> Tensor:
        """Raw samples (N, ...) with which graphs are timed."""
        return self._task.graph_samples(self._trained.samples, BATCH).inputs[self._model.input_key]

    def _training_flops(self, flops: int, passes: int) -> int:
        """Operations of the student in training on one sample, of `passes` forward passes with so many each."""
        return replace(network_cost(self.config), flops=flops).training_flops(passes)

    def _inputs(self) -> ReportInputs:
        trained = self._trained
        models = {name: model for name, (model, _) in trained.teachers.items()}
        others = trained.tokenizers
        return ReportInputs(
            trained.job, trained.samples, self._loaded, models, trained.tokenizer, others, trained.alignment
        )

    def _student(self) -> Figures:
        figures = self._torch_figures(self._loaded, self._bundle / WEIGHTS)
        figures |= self._exact(WEIGHTS, self._evaluate_loaded())
        figures |= self._torch_speed(self._loaded)
        for name, graph in GRAPHS.items():
            if name in self._exports.formats and (found := self._graph(name, graph)) is not None:
                figures[graph.key] = found
        return figures

    def _graph(self, name: ExportFormat, graph: _Graph) -> Figures | None:
        """Figures of an exported graph; none: it can't be exported, and the job did not request it."""
        try:
            call = graph.write(self._loaded.cpu(), self._bundle)
        except (MemoryError, torch.OutOfMemoryError, OSError):
            raise
        except Exception as error:  # exporters raise errors of any kind for networks that they can't trace
            (self._bundle / graph.file).unlink(missing_ok=True)
            if self._trained.job.export is not None:
                raise UserError("not_exportable", f"{name} can't hold this network: {NO_GRAPH}", "export") from error
            self._exports.left_out[name] = NO_GRAPH
            return None
        found = self._trained.evaluator.evaluate_graph(call, self._model)
        figures: Figures = {"bytes": (self._bundle / graph.file).stat().st_size}
        figures |= self._exact(graph.file, found, graph_tolerance(self._model)) if graph.exact else {}
        figures |= {} if graph.exact and quantisation_of(self._model) is None else self._inexact(graph.file, found)
        samples = self._model.fit(self._graph_samples())
        return figures | {"latency_runtime": graph.runtime, **speed(call, samples.cpu())}

    def _evaluate_loaded(self) -> Predictions:
        try:
            return self._trained.evaluator.evaluate(self._loaded)
        except NonFiniteOutputs as error:
            raise SystemFault("export_mismatch", f"{WEIGHTS}, loaded again: {error}") from error

    def _exact(self, file: str, found: Predictions, tolerance: float = TOLERANCE) -> Figures:
        """Metrics of a file that must return the live model's outputs."""
        live, metrics = self._live, found.evaluation.metrics
        allowed = allowed_difference(live.outputs, tolerance)
        require_same(file, found.outputs, live.outputs, allowed)
        targets, options = self._trained.samples.targets, self._trained.job.evaluation
        slacks = self._task.tolerances(live.outputs, targets, options, allowed)
        require_same_metrics(file, metrics, live.evaluation.metrics, slacks)
        return dict(metrics)

    def _inexact(self, file: str, found: Predictions) -> Figures:
        """Metrics of a file that may return other outputs, and its differences."""
        require_finite(file, found.outputs)
        outputs, live = found.outputs, self._live.outputs
        figures: Figures = {**found.evaluation.metrics}
        figures["max_difference"] = float((outputs - live).abs().max())
        if (same := self._task.same_choice(outputs, live)) is not None:
            figures["same_choice"] = float(same)
        return figures

    def _teacher(self, name: str, teacher: Model, folder: Path | None) -> Figures:
        figures = self._costs(teacher) if folder is None else self._torch_figures(teacher, *weight_files(folder))
        figures |= self._trained.evaluator.evaluate_alone(teacher)
        figures |= self._torch_speed(teacher)
        if (untrained := self._trained.untrained_teachers.get(name)) is not None:
            figures["before"] = self._trained.evaluator.evaluate_alone(untrained)
        return figures

    def _learners(self) -> Figures:
        """Figures of networks trained beside the student; empty if there are none."""
        return {name: self._learner(model) for name, model in self._trained.learners.items()}

    def _learner(self, model: Model) -> Figures:
        return {**self._costs(model), **self._trained.evaluator.evaluate_alone(model)}

    def _torch_figures(self, model: Model, *weights: Path) -> Figures:
        return {**self._costs(model), "bytes": sum(path.stat().st_size for path in weights)}

    def _costs(self, model: Model) -> Figures:
        sample = self._trained.samples.between(0, 1).inputs[model.input_key]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"parameters": parameters, "flops": self._task.flops(model.to(sample.device), sample, flops)}

    def _torch_speed(self, model: Model) -> Figures:
        """Speed on the CPU, and before that on the GPU if training ran on one. The model is left on the CPU."""
        samples = self._trained.samples.between(0, BATCH).inputs[model.input_key]
        call = self._task.timed_call(model)
        on_gpu = speed(call, samples, prefix="gpu_") if samples.is_cuda else {}
        model.cpu()
        return {"latency_runtime": "torch", **speed(call, samples.cpu()), **on_gpu}

    def _epochs(self) -> Figures:
        trained, state = self._trained, self._trained.state
        last = self._live if self._model is state.evaluated else trained.evaluator.evaluate(state.evaluated)
        row = Point(step=state.step, values=last.evaluation.metrics)
        kept = trained.job.evaluation.keep
        return epochs_figures(trained.plan, self._task.main_metric, kept, row, state.best.found if state.best else row)

    def _classes(self) -> list[Figures] | None:
        teacher = self._trained.evaluator.teacher_evaluation()
        return class_figures(self._live.evaluation.classes, teacher and teacher.classes, self.config.class_names)

    def _diagnose(self) -> Diagnosed:
        """Run the diagnostics on the weights as loaded from their file."""
        trained, model = self._trained, self._loaded
        assert trained.job.seed is not None  # drawn before training
        return run_diagnostics(
            trained.job.evaluation.diagnostics,
            # of all samples: no more of them, nor of their tokens, than targets
            lambda samples: self._task.sample_outputs(model, samples, samples.targets.numel()),
            HeldOutPart(trained.samples, trained.evaluator.teacher_outputs),
            trained.job.seed,
            self._device,
            self._bundle,
            model,
            {name: teacher for name, (teacher, _) in trained.teachers.items()},
            trained.train,
            trained.further,
        )


def _artifact(bundle: Path, name: str) -> BundleFile:
    media_type = MEDIA_TYPES.get((bundle / name).suffix, "application/octet-stream")
    return BundleFile(name=name, path=f"{BUNDLE}/{name}", media_type=media_type)
