"""The demo, shortened: it goes through to its table, says what the figures say, and stops what it started."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from tests.servers.output import first_line

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = ("--seeds", "1", "--epochs", "1", "--teacher-epochs", "1")


def command(output: Path, *words: str) -> tuple[str, ...]:
    return (sys.executable, str(EXAMPLES / "demo.py"), "--output", str(output), *words)


def address_in(text: str) -> str:
    return next(word for word in text.split() if word.startswith("http://"))


@pytest.mark.long
def test_it_goes_from_data_to_measured_models(tmp_path: Path) -> None:
    result = subprocess.run(command(tmp_path, *SHORT), capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    for word in ("teacher", "distilled", "alone", "167,178", "1,210", "agreement", str(tmp_path)):
        assert word in result.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [round(figure["accuracy"], 3) for figure in figures] == [
        round(json.loads((tmp_path / "models" / name / "report.json").read_text())["student"]["onnx"]["accuracy"], 3)
        for name in ("teacher", "distilled-0", "alone-0")
    ]
    assert figures[0]["agreement"] == 1.0
    with pytest.raises(httpx.ConnectError):
        httpx.get(address_in(result.stdout) + "/healthz")


def test_an_interrupt_stops_the_service_and_is_no_success(tmp_path: Path) -> None:
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs do not
    demo = subprocess.Popen(command(tmp_path, *SHORT), stdout=subprocess.PIPE, text=True, preexec_fn=heeding)
    line = first_line(demo.stdout)
    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate(timeout=600)
    assert demo.returncode == 130
    assert "Interrupted" in rest
    with pytest.raises(httpx.ConnectError):
        httpx.get(address_in(line) + "/healthz")


def test_a_demo_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "service").write_text("a file where the data folder should be")
    result = subprocess.run(command(tmp_path, *SHORT), capture_output=True, text=True, timeout=600)
    assert result.returncode == 1
    assert "did not start" in result.stdout
    assert "service.log" in result.stdout


def test_the_reader_needs_nothing_of_ours() -> None:
    tree = ast.parse((EXAMPLES / "onnx_reader.py").read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "json", "sys", "time", "pathlib", "numpy", "onnxruntime"}


@pytest.fixture
def demo() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    import demo  # type: ignore[import-not-found]  # lies in examples/

    yield demo
    sys.path.remove(str(EXAMPLES))


def test_the_verdict_says_what_the_figures_say(demo: ModuleType) -> None:
    assert "gained 5.0 points; the worst" in demo.verdict([0.95, 0.96], [0.90, 0.91])
    assert "single runs overlap" in demo.verdict([0.95, 0.90], [0.91, 0.90])
    assert "did not help: 1.0 points less" in demo.verdict([0.90], [0.91])
    assert "did not help" in demo.verdict([0.9], [0.9])


def test_the_readers_calibration_error_is_the_known_one(demo: ModuleType) -> None:
    import numpy as np
    import onnx_reader  # type: ignore[import-not-found]  # lies in examples/

    confidence = np.array([0.95, 0.95, 0.65, 0.65])
    correct = np.array([True, True, True, False])
    # Two in (14/15, 1]: gap 0.05; two in (9/15, 10/15]: accuracy 0.5 against 0.65.
    assert onnx_reader.calibration_error(confidence, correct) == pytest.approx((0.05 + 0.15) / 2)
