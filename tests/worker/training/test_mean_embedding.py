"""The mean embedding is that of the teacher's features, costs no pass, and changes nothing of the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ModelConfig, Preprocessing, TableInput
from tests.worker.training.builders import play, stage, weights
from worker.students.model import Model
from worker.training import teacher_checks
from worker.training.mean_embedding import MAX_ROWS, WIDTH, MeanEmbedding, projected

CONFIG = ModelConfig(
    architecture=Mlp(hidden=[7]),
    input=TableInput(columns=3),
    preprocessing=Preprocessing(mean=[0.0] * 3, std=[1.0] * 3),
    classes=4,
)


def table_model() -> Model:
    torch.manual_seed(0)
    return Model(CONFIG).eval()


def features(model: Model, rows: Tensor) -> Tensor:
    """Inputs of the last layer (N, D), computed without the hook."""
    *body, _ = model.network.children()
    return torch.nn.Sequential(*body)(model.preprocess(rows))


def test_it_is_the_projected_mean_of_the_features_before_the_head() -> None:
    model, rows = table_model(), torch.randn(20, 3)
    embedding = MeanEmbedding()
    with embedding.collecting(model), torch.inference_mode():
        for part in rows.split(6):
            model(part)
        expected = projected(features(model, rows).double().mean(0))
    found = embedding.figures()
    assert found is not None
    assert (found["rows"], found["features"], found["source"], len(found["values"])) == (20, 7, "features", WIDTH)
    torch.testing.assert_close(torch.tensor(found["values"], dtype=torch.float64), expected, rtol=1e-6, atol=1e-7)


def test_no_more_than_the_first_rows_count() -> None:
    model, rows = table_model(), torch.randn(MAX_ROWS + 500, 3)
    several, exact = MeanEmbedding(), MeanEmbedding()
    with torch.inference_mode():
        with several.collecting(model):
            for part in rows.split(700):
                model(part)
        with exact.collecting(model):
            model(rows[:MAX_ROWS])
    found, wanted = several.figures(), exact.figures()
    assert found is not None
    assert wanted is not None
    assert found["rows"] == MAX_ROWS
    assert found["values"] == pytest.approx(wanted["values"], rel=1e-6)


def test_the_network_is_left_as_it_was() -> None:
    model = table_model()
    embedding = MeanEmbedding()
    with embedding.collecting(model):
        pass
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert embedding.figures() is None


def test_data_of_one_teacher_that_differ_have_embeddings_that_differ() -> None:
    model = table_model()
    near, also_near, far = MeanEmbedding(), MeanEmbedding(), MeanEmbedding()
    with torch.inference_mode():
        for embedding, shift in ((near, 0.0), (also_near, 0.0), (far, 3.0)):
            with embedding.collecting(model):
                model(torch.randn(500, 3) + shift)
    first, second, third = (
        torch.tensor(found["values"]) for found in (each.figures() for each in (near, also_near, far)) if found
    )
    assert (first - second).norm() < 0.2 * (first - third).norm()


def test_the_report_has_it_and_the_weights_are_those_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = tmp_path / "with"
    play(stage(collected, teacher=True), collected)
    report = json.loads((collected / "bundle" / "report.json").read_bytes())
    assert len(report["data"]["embedding"]["values"]) == WIDTH

    class Nothing(MeanEmbedding):
        def _hook(self, model: Model) -> torch.utils.hooks.RemovableHandle:
            return model.register_forward_hook(lambda *_: None)

    monkeypatch.setattr(teacher_checks, "MeanEmbedding", Nothing)
    without = tmp_path / "without"
    play(stage(without, teacher=True), without)
    assert json.loads((without / "bundle" / "report.json").read_bytes())["data"]["embedding"] is None
    assert weights(collected) == weights(without)
