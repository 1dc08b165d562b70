"""Checkpoints with more weights than their network, compared with how the Transformers library loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.students import builders
from tests.worker.students.test_hugging_face_folder import WORDS, uploaded
from worker.students import hugging_face_weights
from worker.students.leftovers import describe_ignored
from worker.students.weights import InvalidModel, load_model

PRETRAINED = [
    ("bert", "BertForPreTraining", "cls.seq_relationship.bias"),
    ("bert", "BertForMaskedLM", "cls.predictions.bias"),
    ("distilbert", "DistilBertForMaskedLM", "vocab_projector.bias"),
    ("roberta", "RobertaForMaskedLM", "lm_head.dense.weight"),
    ("electra", "ElectraForPreTraining", "discriminator_predictions.dense.weight"),
    ("albert", "AlbertForPreTraining", "sop_classifier.classifier.bias"),
    ("vit", "ViTForMaskedImageModeling", "decoder.0.bias"),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def old(folder: Path, model_type: str, pretrained: str) -> tuple[Any, dict[str, Tensor]]:
    """A folder whose weights are those of a classifier and of its pretraining; the classifier as the library opens it,
    and all weights."""
    uploaded(folder, model_type)
    if model_type != "vit":
        (folder / "vocab.txt").write_text("\n".join([WORDS[1], WORDS[0], *WORDS[2:]]))
    path = folder / "model.safetensors"
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(1)
    tensors = {**getattr(transformers, pretrained)._from_config(config).state_dict(), **load_file(path)}
    write(path, tensors)
    kind = f"AutoModelFor{'ImageClassification' if model_type == 'vit' else 'SequenceClassification'}"
    return getattr(transformers, kind).from_pretrained(folder).eval(), tensors


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def same_weights(ours: Any, theirs: Any) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(("model_type", "pretrained", "name"), PRETRAINED)
def test_heads_of_pretraining_are_passed_over_and_named(
    tmp_path: Path, model_type: str, pretrained: str, name: str
) -> None:
    theirs, _ = old(tmp_path, model_type, pretrained)
    model = load_model(tmp_path)
    same_weights(model.network, theirs)
    assert name in model.ignored
    assert repr(sorted(model.ignored)[0]) in describe_ignored(model.ignored)


def test_former_names_and_buffers_are_passed_over_too(tmp_path: Path) -> None:
    theirs, tensors = old(tmp_path, "bert", "BertForPreTraining")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    renamed["bert.embeddings.position_ids"] = torch.arange(20)[None]
    write(tmp_path / "model.safetensors", renamed)
    same_weights(load_model(tmp_path).network, theirs)


@pytest.mark.parametrize("name", ["cls.predictions.transform.extra", "adapter.weight", "bert.encoder.layer.99.x"])
def test_any_other_tensor_is_still_refused(tmp_path: Path, name: str) -> None:
    _, tensors = old(tmp_path, "bert", "BertForPreTraining")
    write(tmp_path / "model.safetensors", {**tensors, name: torch.zeros(2)})
    with pytest.raises(InvalidModel, match=name):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["classifier.weight", "bert.pooler.dense.bias", "bert.embeddings.LayerNorm.weight"])
def test_a_missing_tensor_is_still_refused(tmp_path: Path, name: str) -> None:
    _, tensors = old(tmp_path, "bert", "BertForPreTraining")
    del tensors[name]
    write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(InvalidModel, match=f"lacks the tensor '{name}'"):
        load_model(tmp_path)


def test_a_body_under_its_bare_names_opens_as_the_library_opens_it(tmp_path: Path) -> None:
    theirs, tensors = old(tmp_path, "bert", "BertForPreTraining")
    write(tmp_path / "model.safetensors", {name.removeprefix("bert."): tensor for name, tensor in tensors.items()})
    same_weights(load_model(tmp_path).network, theirs)


def test_a_student_that_goes_on_names_them_too(tmp_path: Path) -> None:
    theirs, tensors = old(tmp_path, "bert", "BertForPreTraining")
    fresh = builders.model("bert")
    ignored = hugging_face_weights.start_from(fresh.network, fresh.config, tensors).ignored
    same_weights(fresh.network, theirs)
    assert "cls.predictions.bias" in ignored


def test_a_note_names_a_few() -> None:
    assert describe_ignored([f"cls.{number}" for number in range(9)]).startswith("ignored 'cls.0', 'cls.1'")
    assert "and 4 more" in describe_ignored([f"cls.{number}" for number in range(9)])
    assert json.dumps(describe_ignored(["a"]))
