"""Writes the bundle and holds every exported file against the live model, by the reader that a user would use."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.recipe.model import ImageInput, Input, TableInput
from worker.errors import SystemFault
from worker.students.model import Model
from worker.students.weights import load_model, save_model

ONNX = "model.onnx"
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4
"""Largest difference between the logits of an exported file and those of the live model, relative to the largest logit
or to 1. In float32 other orders of summation were seen to differ by some 1e-6."""
LATENCY_RUNS = 100
LATENCY_SECONDS = 0.5
Call = Callable[[Tensor], Tensor]


def export_weights(model: Model, folder: Path, device: torch.device) -> Model:
    """Write weights and description into `folder`, and load them again, in a fresh module on `device`."""
    save_model(model, folder)
    return load_model(folder).to(device)


def export_onnx(model: Model, folder: Path) -> Call:
    """Write `model.onnx` from `model` (on the CPU) and open it in ONNX Runtime.

    The graph holds the preprocessing: `images` are raw pixels, float32 (N, C, H, W) with any N; `logits` (N, classes).
    """
    example = _example(model.config.input)
    batch = torch.export.Dim("batch")
    with _quiet():
        torch.onnx.export(
            model,
            (example,),
            folder / ONNX,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return open_onnx(folder / ONNX)


def _example(sample: Input) -> Tensor:
    """Two samples: of one, torch.export would make a constant."""
    if isinstance(sample, ImageInput):
        return torch.zeros(2, sample.channels, sample.height, sample.width)
    if isinstance(sample, TableInput):
        return torch.zeros(2, sample.columns)
    return torch.zeros(2, sample.length, dtype=torch.int64)


def open_onnx(path: Path) -> Call:
    """The exported graph as a function from raw images of any numeric dtype to logits, on the CPU."""
    import onnxruntime  # a tenth of a second that training need not wait for

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(images: Tensor) -> Tensor:
        pixels: np.ndarray[Any, Any] = images.float().cpu().numpy()
        return torch.from_numpy(session.run([OUTPUT], {INPUT: pixels})[0])

    return call


def require_same(name: str, exported: Tensor, live: Tensor) -> None:
    """Raise SystemFault (`export_mismatch`) when the logits (N, C) of an exported file leave the tolerance."""
    allowed = TOLERANCE * max(1.0, float(live.abs().max()))
    worst = float((exported - live).abs().max())
    if not worst <= allowed:
        raise SystemFault(
            "export_mismatch",
            f"{name} gives other logits than the trained model: by {worst:.2e}, allowed {allowed:.2e}",
        )


def require_same_metrics(name: str, exported: dict[str, float], live: dict[str, float], logits: Tensor) -> None:
    """Raise SystemFault (`export_mismatch`) when an exported file's accuracy or NLL is not the live model's.

    Logits that differ within the tolerance may swap two choices only where these are that close, and may move the NLL
    by twice the difference; the calibration error jumps at the edges of its bins, so it is not compared.
    """
    allowed = 2 * TOLERANCE * max(1.0, float(logits.abs().max()))
    best = logits.topk(2, dim=-1).values
    close = float((best[:, 0] - best[:, 1] <= allowed).double().mean())
    for metric, slack in (("accuracy", close), ("nll", allowed)):
        if not abs(exported[metric] - live[metric]) <= slack + 1e-12:
            found = f"{metric} {exported[metric]:.6f}, the trained model {live[metric]:.6f}"
            raise SystemFault("export_mismatch", f"{name} has {found}")


@torch.inference_mode()
def latency(call: Call, image: Tensor) -> dict[str, float]:
    """Milliseconds of one call with one image (1, C, H, W), p50 and p95, over at most 100 calls or half a second."""
    for _ in range(3):
        call(image)
    times: list[float] = []
    end = time.perf_counter() + LATENCY_SECONDS
    while len(times) < LATENCY_RUNS and (time.perf_counter() < end or not times):
        start = time.perf_counter()
        call(image)
        times.append(1e3 * (time.perf_counter() - start))
    return {"latency_ms_p50": float(np.percentile(times, 50)), "latency_ms_p95": float(np.percentile(times, 95))}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress, warnings about its own internals and notes on absent packages to itself."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
