"""The head of Gaussian naive Bayes: against scikit-learn, and in jobs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.naive_bayes import GaussianNB

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from tests.worker.training.builders import CLASSES, SAMPLES, SIDE, document, play, require_same_bits, stage
from worker.data.holdout import hold_out
from worker.protocol import Failed, Finished, Metrics
from worker.students.heads.nb_diag import ClassMoments, linear_form
from worker.students.model import last_layer
from worker.students.weights import load_model

HEAD: dict[str, Any] = {"kind": "nb-diag"}
STUDENT: dict[str, Any] = {"architecture": "mlp", "hidden": [8], "head": HEAD}


def moments_of(features: torch.Tensor, labels: torch.Tensor, *parts: slice) -> ClassMoments:
    found = ClassMoments(int(labels.max()) + 1, features.shape[1])
    for rows in parts or (slice(None),):
        found.add(features[rows], labels[rows])
    return found


def test_probabilities_are_those_of_scikit_learn_with_equal_variances() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = random.normal(size=(90, 4)) * [1.0, 3.0, 0.2, 1.0] + labels[:, None] + 1000.0
    reference = GaussianNB(var_smoothing=0.0).fit(features, labels)
    reference.var_[:] = reference.class_prior_ @ reference.var_
    moments = moments_of(torch.from_numpy(features), torch.from_numpy(labels))
    weight, bias = linear_form(moments, 0.0)
    held_out = torch.from_numpy(features[::7] + 0.1)
    found = (held_out @ weight.T + bias).softmax(-1)
    np.testing.assert_allclose(found.numpy(), reference.predict_proba(held_out.numpy()), rtol=1e-7, atol=1e-12)


def test_moments_do_not_depend_on_the_batches() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(50, 3, generator=random, dtype=torch.float64) + 1e4
    labels = torch.randint(0, 4, (50,), generator=random)
    whole, parts = moments_of(features, labels), moments_of(features, labels, slice(7), slice(7, 9), slice(9, 50))
    torch.testing.assert_close(parts.means, whole.means, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.variances, whole.variances, rtol=1e-9, atol=1e-12)


def test_a_constant_feature_does_not_decide() -> None:
    features = torch.tensor([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0], [5.0, 5.0]], dtype=torch.float64)
    moments = moments_of(features, torch.tensor([0, 0, 1, 1]))
    weight, bias = linear_form(moments, 0.0)
    assert weight.isfinite().all()
    assert not weight[:, 1].any()
    assert ((torch.tensor([[0.5, 7.0]], dtype=torch.float64) @ weight.T) + bias).argmax() == 0


def test_the_exported_head_is_that_of_the_training_samples(tmp_path: Path) -> None:
    asked = stage(tmp_path, student=STUDENT, recipe={"epochs": 2})
    played = play(asked, tmp_path)
    assert isinstance(played.word, Finished), played.word
    assert asked.spec.seed is not None
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    model = load_model(tmp_path / "bundle").eval()
    data = np.load(tmp_path / "data.npz")
    images, labels = torch.from_numpy(data["x"]).reshape(SAMPLES, 1, SIDE, SIDE), torch.from_numpy(data["y"])
    layer, found = last_layer(model), []
    assert layer is not None
    layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        logits = model(images)
    rows, others = hold_out(labels, report["samples"]["eval"], asked.spec.seed)
    weight, bias = linear_form(moments_of(found[0][rows], labels[rows]), 1e-9)
    torch.testing.assert_close(layer.weight.double(), weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.double(), bias, rtol=1e-4, atol=1e-3)
    right = (logits.argmax(-1) == labels)[others].double().mean()
    assert report["student"]["accuracy"] == pytest.approx(float(right))


def test_a_job_that_is_stopped_resumes_to_the_same_bits(tmp_path: Path) -> None:
    require_same_bits(partial(stage, student=STUDENT, recipe={"epochs": 2, "ema_decay": 0.8}), tmp_path)


def test_a_class_without_samples_is_named(tmp_path: Path) -> None:
    asked = stage(tmp_path, student=STUDENT, data={"train": "data", "classes": CLASSES + 1})
    played = play(asked, tmp_path)
    word = played.word
    assert isinstance(word, Failed)
    assert not played.of(Metrics)  # before any step
    assert (word.fault, word.param) == ("user", "data.train")
    assert f"class '{CLASSES}'" in word.message


@pytest.mark.parametrize(
    ("changes", "field", "accepted"),
    [
        ({"evaluation": {"keep": "best"}}, "evaluation.keep", "last"),
        ({"resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}}, "resources.sharding", "none"),
        ({"task": "regression", "recipe": {"losses": [{"kind": "mse"}]}}, "student.head.kind", "linear"),
        (
            {"recipe": {"method": {"kind": "mutual", "architectures": [STUDENT]}}},
            "recipe.method.architectures[0].head.kind",
            "linear",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(changes: dict[str, Any], field: str, accepted: str) -> None:
    job = JobSpec.model_validate(document(**{"student": STUDENT, **changes}))
    found = {each.param: each.accepted for each in find_problems(job)}
    assert accepted in found[field]
