"""Networks of the Transformers library: built from plain data, called with one tensor."""

from __future__ import annotations

import copy
import io
import os

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification

from app.recipe.students.architectures import Transformers
from app.recipe.students.model import ImageInput, TextInput
from tests.worker.students import builders
from worker.errors import UserError
from worker.students import build
from worker.students.measure import network_cost
from worker.students.model import Model

EVERY = pytest.mark.parametrize("model_type", [*builders.IMAGE_NETWORKS, *builders.TEXT_NETWORKS])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@EVERY
def test_it_learns_from_raw_samples(model_type: str) -> None:
    model = builders.model(model_type).train()
    logits = model(builders.samples(model.config))
    assert logits.shape == (2, 5)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert any(bool(gradient.any()) for gradient in gradients)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@EVERY
def test_its_cost_is_counted_without_building_it(model_type: str) -> None:
    model = builders.model(model_type)
    cost = network_cost(model.config)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.flops > 0
    assert cost.activations > cost.peak_activation > 0


@EVERY
def test_a_sample_does_not_depend_on_its_batch(model_type: str) -> None:
    model = builders.model(model_type)
    samples = builders.samples(model.config, 3)
    torch.testing.assert_close(model(samples)[1:2], model(samples[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["vit", "bert", "roberta"])
def test_the_graph_takes_any_number_of_samples(model_type: str) -> None:
    model = builders.model(model_type)
    example = builders.samples(model.config)
    example = example if example.dtype == torch.int64 else example.float()
    shapes = ({0: torch.export.Dim("batch")},)
    names = {"input_names": ["samples"], "output_names": ["logits"]}
    program = torch.onnx.export(model, (example,), dynamic_shapes=shapes, dynamo=True, verbose=False, **names)
    assert program is not None
    program.save(buffer := io.BytesIO())
    session = onnxruntime.InferenceSession(buffer.getvalue())
    samples = builders.samples(model.config, 5).to(example.dtype)
    (logits,) = session.run(["logits"], {"samples": samples.numpy()})
    np.testing.assert_allclose(logits, model(samples).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_padding_is_not_attended_to() -> None:
    model = builders.model("bert")
    tokens = builders.samples(model.config)
    short = tokens[:1, : builders.LENGTH // 2]
    torch.testing.assert_close(model(tokens[:1]), model(short), rtol=1e-4, atol=1e-6)


def test_parts_of_a_text_are_distinguished_by_their_separators() -> None:
    model = builders.model("bert")
    tokens = torch.tensor([[4, 5, 3, 6, 7, 3, 1, 1]])
    theirs = AutoModelForSequenceClassification.from_config(model.network.config).eval()
    theirs.load_state_dict(model.network.state_dict())
    kinds = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0]])
    expected = theirs(input_ids=tokens, attention_mask=(tokens != 1).long(), token_type_ids=kinds).logits
    torch.testing.assert_close(model(tokens), expected)


def test_its_modules_have_the_library_s_names_and_a_copy_is_whole() -> None:
    model = builders.model("bert")
    assert isinstance(model.network.get_submodule("bert.encoder.layer.1"), torch.nn.Module)
    samples, twin = builders.samples(model.config), copy.deepcopy(model)
    torch.nn.init.zeros_(next(model.parameters()))
    assert not torch.equal(twin(samples), model(samples))


def test_the_library_is_set_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "mystery"}, "model_type"),
        ({"hidden_size": 8}, "model_type"),
        ({"model_type": "bert", "auto_map": {"AutoModel": "evil--m.M"}}, "auto_map"),
        ({"model_type": "bert", "inner": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"model_type": "bert", "custom_pipelines": {"p": {}}}, "custom_pipelines"),
        ({"model_type": "bert", "_name_or_path": "/etc"}, "_name_or_path"),
        ({"model_type": "bert", "num_labels": 3}, "num_labels"),
        ({"model_type": "bert", "num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"model_type": "bert", "_attn_implementation": "kernels/evil"}, "_attn_implementation"),
        ({"model_type": "bert", "notes": "x" * 70_000}, "characters"),
    ],
)
def test_a_configuration_that_is_not_a_plain_network_is_refused_by_name(config: dict[str, object], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        Transformers.model_validate({"architecture": "transformers", "config": config})


@pytest.mark.parametrize(
    ("student", "param"),
    [
        (builders.network("bert", num_attention_heads=5), "student.config"),
        (builders.network("bert", hidden_act="nonsense"), "student.config"),
        (builders.network("bert", max_position_embeddings=8), "student.config.max_position_embeddings"),
        (builders.network("roberta", max_position_embeddings=13), "student.config.max_position_embeddings"),
    ],
)
def test_what_the_library_can_t_build_is_the_user_s_fault(student: Transformers, param: str) -> None:
    with pytest.raises(UserError) as caught:
        build(student, TextInput(length=12, vocabulary=30, pad=1), 5)
    assert (caught.value.code, caught.value.param) == ("invalid_architecture", param)


def test_images_of_another_shape_follow_the_configuration() -> None:
    wide = ImageInput(channels=1, height=16, width=24)
    config = builders.described(builders.network("vit"), input=wide)
    config = config.model_copy(update={"preprocessing": None})
    assert Model(config).network(torch.randn(2, 1, 16, 24)).shape == (2, 5)
