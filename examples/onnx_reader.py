"""Reads a downloaded bundle as any program would: with NumPy and ONNX Runtime alone, and nothing of Stillhouse.

    python onnx_reader.py BUNDLE DATA.npz [TEACHER_BUNDLE]

Prints accuracy, expected calibration error (15 bins), agreement with the teacher and latency on one core as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

BINS = 15
TIMED_RUNS = 300


class Bundle:
    """A folder with `model.onnx` and the `config.json` that says how to feed it."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Raw images (N, H, W) or (N, H, W, C) as the network takes them: (N, C, H, W), normalised float32."""
        if images.ndim == 3:
            images = images[..., None]
        how = self.config["preprocessing"]
        pixels = (images * how["scale"] - np.array(how["mean"])) / np.array(how["std"])
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Logits (N, classes) of prepared images."""
        return self.session.run(None, {self.session.get_inputs()[0].name: inputs})[0]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their share (arXiv 1706.04599)."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = (abs(confidence[bins == b].sum() - correct[bins == b].sum()) for b in range(BINS))
    return float(sum(gaps) / len(confidence))


def median_milliseconds(bundle: Bundle, image: np.ndarray) -> float:
    """Median time of one image on one core, after a warm-up."""
    times = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        bundle.logits(image)
        times.append(time.perf_counter() - start)
    return float(np.median(times[TIMED_RUNS // 10 :]) * 1000)


def main(folder: str, data: str, teacher: str | None = None) -> None:
    archive = np.load(data, allow_pickle=False)
    bundle = Bundle(Path(folder))
    inputs = bundle.prepare(archive["x"])
    chances = probabilities(bundle.logits(inputs))
    answers = chances.argmax(axis=1)
    correct = answers == archive["y"]
    figures = {
        "accuracy": float(correct.mean()),
        "ece": calibration_error(chances.max(axis=1), correct),
        "latency_ms": median_milliseconds(bundle, inputs[:1]),
    }
    if teacher is not None:
        reference = Bundle(Path(teacher))
        figures["agreement"] = float(
            (reference.logits(reference.prepare(archive["x"])).argmax(axis=1) == answers).mean()
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
