"""Replaced layers in a job's student: what they are described as, and refusals with their reasons."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import Archive, ArrayFacts
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.architectures import DualEncoder, Transformers
from app.recipe.students.derived import network_of
from app.recipe.students.model import ModelConfig
from app.recipe.students.replacements import Replacement

Document = dict[str, Any]
DATA: Archive = {"x": ArrayFacts((100, 8, 8), "u1"), "y": ArrayFacts((100,), "i8")}
RMS: Document = {"match": "*layernorm*", "with": {"kind": "rms"}}
LAYER: Document = {"match": "*layernorm_after", "with": {"kind": "layer"}}
VIT: Document = {
    "architecture": "transformers",
    "config": {"model_type": "vit", "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2},
}
ZOO: Document = {"architecture": "wide-resnet"}
IMAGE: Document = {"channels": 1, "height": 8, "width": 8}


def stored(architecture: Document) -> ModelConfig:
    document = {"architecture": architecture, "input": IMAGE, "preprocessing": {"mean": [0.0], "std": [1.0]}}
    return ModelConfig.model_validate({**document, "classes": 10})


def job(student: Document, **changes: Any) -> JobSpec:
    recipe = {"losses": [{"kind": "cross-entropy"}]}
    return JobSpec.model_validate({"data": {"train": "file_a"}, "student": student, "recipe": recipe, **changes})


def problems(student: Document, model: Document, **changes: Any) -> list[Problem]:
    facts = InputFacts(train=DATA, teachers={"model_a": stored(model)})
    return list(find_problems(job(student, **changes), facts))


def pretrained(*replace: Document) -> Document:
    return {"architecture": "pretrained", "model": "model_a", "replace": list(replace)}


def test_a_description_without_replacements_is_as_before() -> None:
    assert "replace" not in Transformers.model_validate(VIT).model_dump()
    assert Transformers.model_validate({**VIT, "replace": [RMS]}).model_dump(mode="json")["replace"] == [RMS]


def test_a_stored_network_keeps_its_own_and_gets_the_job_s() -> None:
    network = network_of(job(pretrained(LAYER)), {"model_a": stored({**VIT, "replace": [RMS]})})
    assert isinstance(network, Transformers)
    assert network.replace == [Replacement.model_validate(each) for each in (RMS, LAYER)]
    assert not problems(pretrained(LAYER), {**VIT, "replace": [RMS]})


def test_a_network_of_the_zoo_is_refused() -> None:
    [problem] = problems(pretrained(RMS), ZOO)
    assert problem.param == "student.replace"
    assert problem.accepted == "none, or a network of the Transformers library"


def test_a_teacher_with_replaced_layers_is_not_shrunk() -> None:
    recipe = {"losses": [{"kind": "kd"}]}
    shrink = {"architecture": "shrink", "layers": 1}
    found = problems(shrink, {**VIT, "replace": [RMS]}, recipe=recipe, teacher={"model": "model_a"})
    assert [problem.param for problem in found] == ["student.architecture"]
    assert "replaced layers" in found[0].message


def test_an_encoder_of_texts_is_refused() -> None:
    bert = {"architecture": "transformers", "config": {"model_type": "bert"}, "replace": [RMS]}
    data = {
        **{"train": "file_a", "format": "csv", "input_columns": ["a", "b"], "label_columns": ["c"], "max_length": 8},
    }
    recipe = {"losses": [{"kind": "contrastive"}]}
    found = list(find_problems(job(bert, task="embedding", data=data, recipe=recipe), InputFacts()))
    assert [problem.param for problem in found] == ["student.replace"]


def test_the_encoder_of_a_dual_encoder_is_refused() -> None:
    bert = {"architecture": "transformers", "config": {"model_type": "bert"}, "replace": [RMS]}
    with pytest.raises(ValidationError, match="replace is not for the encoder of a dual-encoder; accepted: none"):
        DualEncoder.model_validate({"architecture": "dual-encoder", "encoder": bert})


ATTENTION: Document = {"match": "*.attention", "with": {"kind": "linear"}}


def test_attention_without_the_mask_of_the_network_is_refused() -> None:
    gpt2 = {"architecture": "transformers", "config": {"model_type": "gpt2"}, "replace": [RMS, ATTENTION]}
    data = {"train": "file_a", "format": "csv", "input_columns": ["a"], "max_length": 8}
    found = list(find_problems(job(gpt2, task="causal-lm", data=data), InputFacts()))
    assert [problem.param for problem in found] == ["student.replace[1].with.kind"]
    assert found[0].accepted == "softmax, sigmoid, softplus"
    bert = {"architecture": "transformers", "config": {"model_type": "bert"}, "replace": [ATTENTION]}
    texts = {**data, "label_columns": ["b"]}
    assert not list(find_problems(job(bert, task="text-classification", data=texts), InputFacts()))


@pytest.mark.parametrize("kind", ["soft", "nala"])
def test_attention_with_maps_of_its_own_is_no_replacement(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"{kind} needs the places of patches"):
        Transformers.model_validate({**VIT, "replace": [{"match": "*", "with": {"kind": kind}}]})


def test_norms_of_whole_batches_are_no_replacements() -> None:
    with pytest.raises(ValidationError, match="power has statistics of whole batches"):
        Transformers.model_validate({**VIT, "replace": [{"match": "*", "with": {"kind": "power"}}]})


def test_norms_of_images_are_no_replacements() -> None:
    with pytest.raises(ValidationError, match="batch is for networks of images, not of tokens"):
        Transformers.model_validate({**VIT, "replace": [{"match": "*", "with": {"kind": "batch"}}]})
