"""The report of a quantised student."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.worker.training.builders import play, stage
from worker.protocol import Finished


def test_the_report_compares_the_graph_with_that_of_the_weights_in_float32(tmp_path: Path) -> None:
    student = {"architecture": "mlp", "hidden": [64], "quantise": {"kind": "qat"}}
    word = play(stage(tmp_path, student=student, export=None), tmp_path).word
    assert isinstance(word, Finished)
    assert {each.name for each in word.artifacts} >= {"model.safetensors", "model.onnx", "model.pt2"}
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    found, graph = report["quantisation"], report["student"]["onnx"]
    assert (found["kind"], found["layers"]) == ("qat", 2)
    assert graph["bytes"] == (tmp_path / "bundle" / "model.onnx").stat().st_size < found["float"]["bytes"]
    assert graph["max_difference"] < 1e-3
    for figures in (graph, found["float"]):
        assert {"accuracy", "nll", "latency_ms_p50"} <= set(figures)
    assert found["float"]["nll"] != report["student"]["nll"]
    assert "float32" in (tmp_path / "bundle" / "README.md").read_text()


def test_a_student_of_integers_is_published_with_a_program_that_reads_it(tmp_path: Path) -> None:
    student = {"architecture": "mlp", "hidden": [64], "quantise": {"kind": "shift-quant"}}
    word = play(stage(tmp_path, student=student, export=None), tmp_path).word
    assert isinstance(word, Finished)
    bundle = tmp_path / "bundle"
    figures = json.loads((bundle / "report.json").read_text())["student"]["integer"]
    assert figures["bytes"] == (bundle / "model.integer.npz").stat().st_size
    assert (figures["max_difference"], figures["latency_runtime"]) == (0.0, "numpy")
    assert {"accuracy", "nll", "latency_ms_p50"} <= set(figures)
    assert printed_by(bundle, "model.integer.npz")


def test_a_spiking_student_is_evaluated_over_its_time_steps(tmp_path: Path) -> None:
    student = {"architecture": "mlp", "hidden": [32, 32], "quantise": {"kind": "binary", "steps": 60}}
    word = play(stage(tmp_path, student=student, export=None), tmp_path).word
    assert isinstance(word, Finished), word
    bundle = tmp_path / "bundle"
    report = json.loads((bundle / "report.json").read_text())
    rows, figures = report["quantisation"]["spiking"], report["student"]["spiking"]
    assert [row["steps"] for row in rows] == [10, 20, 50, 60]
    assert rows[-1]["accuracy"] == figures["accuracy"]
    assert all(0 < row["spikes"] <= 64 * row["steps"] and row["multiplications"] == 36 * 32 for row in rows)
    assert [row["additions"] for row in rows] == sorted(row["additions"] for row in rows)
    assert figures["bytes"] == (bundle / "model.spiking.npz").stat().st_size
    assert printed_by(bundle, "model.spiking.npz")


def printed_by(bundle: Path, file: str) -> str:
    """Output of the card's program that reads a file."""
    program = (bundle / "README.md").read_text().partition(f"`{file}`:\n\n```python\n")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-c", program], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
