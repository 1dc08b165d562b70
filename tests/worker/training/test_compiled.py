"""The student's forward pass in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ModelConfig, Preprocessing, TableInput
from tests.worker.training.builders import document, finished, stage
from worker.students.model import Model
from worker.students.weights import load_model
from worker.training import compiled
from worker.training.compiled import graphed, suits_graphs, training_forward

GPU = torch.device("cuda")
HINT = {"kind": "hint", "pairs": [{"teacher": "2", "student": "2"}]}
INSIDE = {"losses": [{"kind": "cross-entropy"}, HINT]}
STAGED = {"stages": [{"losses": [HINT], "epochs": 1, "trains": "terms"}]}


def student() -> Model:
    scaling = Preprocessing(mean=[0.0], std=[1.0])
    return Model(
        ModelConfig(architecture=Mlp(hidden=[2]), input=TableInput(columns=1), preprocessing=scaling, classes=2)
    )


def job(**recipe: Any) -> JobSpec:
    return JobSpec.model_validate(document(teacher=True, recipe=recipe))


@pytest.mark.parametrize("recipe", [{"accumulate": 2}, INSIDE, STAGED], ids=["parts", "inside", "terms"])
def test_graphs_are_for_steps_that_run_the_student_once_and_use_its_outputs_only(recipe: dict[str, Any]) -> None:
    assert suits_graphs(student(), job(), GPU)
    assert not suits_graphs(student(), job(), torch.device("cpu"))
    assert not suits_graphs(student(), job(**recipe), GPU)


def test_a_student_that_is_not_to_be_compiled_is_left_alone() -> None:
    model = student()
    assert training_forward(model, job(), GPU) is model


def test_each_run_of_graphs_begins_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def compile_(module: Any, **options: Any) -> Any:
        calls.append(options)
        return module

    monkeypatch.setattr(compiled.torch, "compile", compile_)
    monkeypatch.setattr(compiled.torch.compiler, "cudagraph_mark_step_begin", lambda: calls.append("step"))
    forward, samples = graphed(torch.nn.Identity()), torch.ones(2)  # type: ignore[arg-type]  # it is only called
    outputs = [forward(samples), forward(samples)]
    assert all(isinstance(output, Tensor) and torch.equal(output, samples) for output in outputs)
    assert calls == [{"mode": "reduce-overhead", "dynamic": False}, "step", "step"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_steps_of_graphs_are_those_of_the_student_itself(tmp_path: Path) -> None:
    for name, compile_ in (("plain", False), ("graphs", True)):
        recipe = {"epochs": 3, "batch_size": 16, "compile": compile_, "optimizer": {"kind": "sgd", "lr": 0.1}}
        finished(tmp_path / name, stage(tmp_path / name, teacher=True, recipe=recipe))  # the last batch has 8 samples
    plain, graphs = (load_model(tmp_path / name / "bundle").state_dict() for name in ("plain", "graphs"))
    torch.testing.assert_close(graphs, plain, rtol=1e-3, atol=1e-5)
