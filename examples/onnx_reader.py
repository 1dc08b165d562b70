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
    """A folder with `model.onnx`, which takes raw pixels: the preprocessing is part of the graph."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, classes) of images (N, C, H, W) in float32."""
        return self.session.run(["logits"], {"images": images})[0]


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
    images, labels = archive["x"][:, None].astype(np.float32), archive["y"]  # one channel of grey
    bundle = Bundle(Path(folder))
    chances = probabilities(bundle.logits(images))
    answers = chances.argmax(axis=1)
    figures = {
        "accuracy": float((answers == labels).mean()),
        "ece": calibration_error(chances.max(axis=1), answers == labels),
        "latency_ms": median_milliseconds(bundle, images[:1]),
    }
    if teacher is not None:
        figures["agreement"] = float((Bundle(Path(teacher)).logits(images).argmax(axis=1) == answers).mean())
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
