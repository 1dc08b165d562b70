"""Figures of a quantised student beside those of its weights in float32."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor

from app.recipe.report import ONNX, SPIKING
from app.recipe.students.architectures import BuiltIn
from worker.bundle.export import export_onnx
from worker.bundle.spiking import spiking_figures
from worker.bundle.verify import QUANTISED_TOLERANCE, TOLERANCE
from worker.students.model import Model
from worker.students.quantisers import quantised_layers, without_quantisers
from worker.tasks.base import Figures, TaskEvaluator
from worker.training.measure import speed


def is_quantised(model: Model) -> bool:
    """Whether the layers of a model compute with few bits."""
    network = model.config.architecture
    return isinstance(network, BuiltIn) and network.quantise is not None


def graph_tolerance(model: Model) -> float:
    """Tolerance of a graph's outputs, as `verify.TOLERANCE`."""
    return QUANTISED_TOLERANCE if is_quantised(model) else TOLERANCE


def quantisation_figures(model: Model, evaluator: TaskEvaluator, samples: Tensor, folder: Path) -> Figures:
    """Kind and number of quantised layers of a model on the CPU, and `float`: metrics, bytes and speed of an ONNX graph
    of the same weights without quantisers, written to a new folder within `folder` and removed.

    Of a spiking network in `folder` also its metrics over time. `samples` (N, ...) are raw ones, for the measurement of
    speed.
    """
    network = model.config.architecture
    assert isinstance(network, BuiltIn)
    assert network.quantise is not None
    plain = Model(model.config, without_quantisers(model.network), model.input_key).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        call = export_onnx(plain, Path(scratch))
        figures: Figures = dict(evaluator.evaluate_graph(call, plain).evaluation.metrics)
        figures |= {"bytes": (Path(scratch) / ONNX).stat().st_size, "latency_runtime": "onnxruntime"}
        figures |= speed(call, samples.cpu())
    layers = sum(1 for _ in quantised_layers(model.network))
    over_time = {"spiking": spiking_figures(model, evaluator, folder)} if (folder / SPIKING).exists() else {}
    return {"kind": network.quantise.kind, "layers": layers, "float": figures, **over_time}
