"""Writes a model in every requested format and opens each file with the reader that a user would use.

The graphs include the preprocessing. Their inputs are raw samples, of any number N: `images` float32 (N, C, H, W),
`table` float32 (N, D) or `tokens` int64 (N, S) of any length S that the model accepts. Their outputs are float32:
`logits` (N, classes), for a language model `logits` (N, S, vocabulary), `outputs` (N, targets) or `embeddings`
(N, width). A classifier's graphs have the names of its classes as JSON: ONNX in its metadata under `id2label`, torch's
in the extra file `id2label.json`.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.recipe.report import INT8, ONNX, PROGRAM
from app.recipe.students.model import Input, ModelConfig, TextInput
from worker.bundle.qdq import with_qdq_layers
from worker.bundle.snippets import LABELS, output_name
from worker.students.folding import with_folded_norms
from worker.students.measure import example
from worker.students.model import Model
from worker.students.weights import load_model, save_model
from worker.training.measure import speed

QUANTISED = ["Conv", "Gather", "Gemm", "MatMul"]
"""Operators whose constant weights become int8: convolutions, linear layers, embeddings."""
SHORTEST = 3
"""Fewest tokens of a non-empty text, with its begin and end tokens; networks with convolutions over tokens can't be
exported for fewer."""
TRACED = 2
"""Samples that a graph is traced with: torch.export would fix the number of a single one."""
Call = Callable[[Tensor], Tensor]


def export_weights(model: Model, folder: Path, device: torch.device) -> Model:
    """Write weights and config into `folder`, and load them into a new module on `device`."""
    save_model(model, folder)
    loaded = load_model(folder)
    loaded.input_key = model.input_key
    return loaded.to(device)


def export_onnx(model: Model, folder: Path) -> Call:
    """Write `model.onnx` from `model` (on the CPU) and open it in ONNX Runtime; see the module for the tensors."""
    with _quiet():
        program = torch.onnx.export(
            with_folded_norms(with_qdq_layers(model)),
            (example(model.config.input, TRACED),),
            input_names=[model.config.input.key],
            output_names=[output_name(model.config)],
            dynamic_shapes=(_free(model.config.input),),
            dynamo=True,
            verbose=False,
        )
        for node in program.model.graph.all_nodes():  # type: ignore[union-attr]  # with dynamo it is a program
            node.metadata_props.clear()  # lines of our sources, with the paths of this machine
        program.model.metadata_props.update(_labels(model.config))  # type: ignore[union-attr]
        program.save(folder / ONNX, external_data=False)  # type: ignore[union-attr]
    return open_onnx(folder / ONNX)


def onnx_latency(model: Model, samples: Tensor, folder: Path) -> float:
    """Median milliseconds that a model on the CPU, exported to a graph in a new folder within `folder`, takes for one
    of the raw `samples` (N, ...)."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        return speed(export_onnx(model, Path(scratch)), samples.cpu())["latency_ms_p50"]


def export_int8(model: Model, folder: Path) -> Call:
    """Write `model.int8.onnx` from the `model.onnx` in `folder`, and open it in ONNX Runtime.

    Weights are stored in 8 bits, one scale per channel of a linear layer and one per convolution; activations are
    quantised dynamically, over their range in each call (which needs no data for calibration). Weights are unsigned:
    ONNX Runtime was measured to take five times as long for convolutions with signed ones on the CPU, and products of
    unsigned numbers do not overflow on older processors.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(folder / ONNX)
    del graph.graph.value_info[:]  # the quantiser transposes weights, which would contradict their stored shapes
    with _quiet():
        quantize_dynamic(graph, folder / INT8, QUANTISED, per_channel=True, weight_type=QuantType.QUInt8)
    return open_onnx(folder / INT8)


def export_program(model: Model, folder: Path) -> Call:
    """Write `model.pt2` from `model` (on the CPU) and open it with `torch.export.load`; see the module for the
    tensors."""
    with _quiet():
        sample = model.config.input
        program = torch.export.export(
            with_folded_norms(model), (example(sample, TRACED),), dynamic_shapes=(_free(sample),)
        )
        _remove_stack_traces(program.graph_module)
        labels = {f"{name}.json": content for name, content in _labels(model.config).items()}
        torch.export.save(program, folder / PROGRAM, extra_files=labels)
        opened = torch.export.load(folder / PROGRAM).module()

    def call(samples: Tensor) -> Tensor:
        outputs: Tensor = opened(_as_input(samples).cpu())
        return outputs

    return call


def _labels(config: ModelConfig) -> dict[str, str]:
    """Names of a classifier's classes by the numbers of its logits, as JSON; classes without names are numbered."""
    if config.classes is None:
        return {}
    names = config.class_names or [str(number) for number in range(config.classes)]
    return {LABELS: json.dumps({str(number): name for number, name in enumerate(names)}, ensure_ascii=False)}


def _remove_stack_traces(graph: torch.fx.GraphModule) -> None:
    """Remove the stack trace of every node, which has lines of our sources with the paths of this machine."""
    for module in graph.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def open_onnx(path: Path) -> Call:
    """The exported graph as a function from raw samples (N, ...) of any numeric dtype to float32 outputs, on the
    CPU."""
    import onnxruntime  # a tenth of a second that training need not wait for

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def call(samples: Tensor) -> Tensor:
        values: np.ndarray[Any, Any] = _as_input(samples).cpu().numpy()
        return torch.from_numpy(session.run(None, {name: values})[0])

    return call


def _as_input(samples: Tensor) -> Tensor:
    """Samples in the dtype of the graph's input: int64 for token ids, else float32."""
    return samples if samples.dtype == torch.int64 else samples.float()


def _free(sample: Input) -> dict[int, torch.export.Dim]:
    """The dynamic axes: the number of samples, and of the tokens of a text up to the model's length."""
    free = {0: torch.export.Dim("batch")}
    if isinstance(sample, TextInput) and sample.length > SHORTEST:
        free[1] = torch.export.Dim("tokens", min=SHORTEST, max=sample.length)
    return free


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress, warnings about its internals and notes on missing packages."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
