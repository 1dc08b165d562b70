"""Layers of a library's network that are built as another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from app.recipe.students.architectures import Transformers
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.students.replacements import Replacement
from tests.worker.students import builders
from worker.errors import UserError
from worker.students import hugging_face_weights
from worker.students.faults import InvalidModel
from worker.students.layers.norms import RootMeanSquareNorm
from worker.students.model import Model
from worker.students.replaced import replace_layers
from worker.students.weights import load_model, read_config, save_model

RMS = {"kind": "rms"}
EVERY_NORM = {"bert": "*.LayerNorm", "vit": "*layernorm*", "distilbert": "*[nN]orm"}


def replaced(model_type: str, match: str | None = None, layer: dict[str, Any] = RMS) -> ModelConfig:
    """The description of a small network whose layers of this pattern, by default all norms, are of another kind."""
    config = builders.model(model_type).config
    replacement = Replacement.model_validate({"match": match or EVERY_NORM[model_type], "with": layer})
    network = config.architecture.model_copy(update={"replace": [replacement]})
    return config.model_copy(update={"architecture": network})


def norms(network: nn.Module) -> list[type]:
    return [type(module) for module in network.modules() if "Norm" in type(module).__name__]


@pytest.mark.parametrize("model_type", EVERY_NORM)
def test_matching_norms_are_built_as_the_other_kind(model_type: str) -> None:
    config = replaced(model_type)
    model = Model(config).eval()
    assert set(norms(model.network)) == {RootMeanSquareNorm}
    assert len(norms(model.network)) == len(norms(builders.model(model_type).network))
    assert model(builders.samples(config)).isfinite().all()


def test_others_stay_as_they_are() -> None:
    network = Model(replaced("bert", "bert.encoder.layer.0.*.LayerNorm")).network
    assert norms(network).count(RootMeanSquareNorm) == 2
    assert norms(network).count(nn.LayerNorm) == 3


def test_its_outputs_are_those_of_the_network_with_the_new_norm() -> None:
    """Centred inputs of a norm without an offset have the same layer norm and root mean square norm."""
    layer = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))
    rows = torch.randn(5, 6)
    centred = rows - rows.mean(-1, keepdim=True)
    before = layer[1](centred)
    replace_layers(layer, [Replacement.model_validate({"match": "1", "with": RMS})], None)
    torch.testing.assert_close(layer[1](centred), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", EVERY_NORM)
def test_it_is_stored_and_read_again(model_type: str, tmp_path: Path) -> None:
    model = Model(replaced(model_type)).eval()
    save_model(model, tmp_path)
    assert read_config(tmp_path) == model.config
    samples = builders.samples(model.config)
    torch.testing.assert_close(load_model(tmp_path)(samples), model(samples), rtol=0, atol=0)


def test_a_library_that_would_build_its_own_layers_does_not_open_it(tmp_path: Path) -> None:
    save_model(Model(replaced("bert")), tmp_path)
    with pytest.raises(ValueError, match="Unrecognized model"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_weights_of_the_plain_network_are_none_of_a_stored_one(tmp_path: Path) -> None:
    model = Model(replaced("bert")).eval()
    save_model(model, tmp_path)
    plain = builders.model("bert")
    hugging_face_weights.save(plain.network, plain.config, tmp_path)
    (tmp_path / "config.json").write_text(model.config.model_dump_json())
    with pytest.raises(InvalidModel, match=r"has a tensor '.*LayerNorm.bias' that the architecture does not have"):
        load_model(tmp_path)


def stored_state(model_type: str) -> dict[str, Tensor]:
    state = builders.model(model_type).network.state_dict()
    return {name: torch.full_like(tensor, 0.5) for name, tensor in state.items()}


def test_a_started_one_takes_over_what_fits_and_names_the_rest() -> None:
    model = Model(replaced("bert"))
    found = hugging_face_weights.start_from(model.network, model.config, stored_state("bert"))
    assert all(
        bool((tensor == 0.5).all()) for tensor in model.network.state_dict().values() if tensor.is_floating_point()
    )
    assert found.fresh == []
    assert len(found.dropped) == 5
    assert all(name.endswith("LayerNorm.bias") for name in found.dropped)
    assert not set(found.dropped) & set(found.ignored)


def test_tensors_without_a_stored_one_start_as_the_layer_defines_them() -> None:
    model, state = Model(replaced("bert")), stored_state("bert")
    del state["bert.embeddings.LayerNorm.weight"]
    found = hugging_face_weights.start_from(model.network, model.config, state)
    assert found.fresh == ["bert.embeddings.LayerNorm.weight"]
    assert bool((model.network.state_dict()["bert.embeddings.LayerNorm.weight"] == 1.0).all())


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (
            "*.layernorm",
            "matches no module; accepted: normalisation layers of tokens, such as bert.embeddings.LayerNorm",
        ),
        ("bert.encoder.layer.0.*", "matches bert.encoder.layer.0.attention, a BertAttention; accepted: normalisation"),
    ],
)
def test_a_pattern_that_does_not_match_norms_alone_is_refused(match: str, message: str) -> None:
    with pytest.raises(UserError, match=r".*") as caught:
        Model(replaced("bert", match))
    assert message in caught.value.message
    assert caught.value.param == "student.replace[0].match"


class AddsOneRMSNorm(nn.Module):
    """A norm whose weight is added to 1, as some decoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))


def test_a_norm_that_scales_otherwise_is_refused() -> None:
    network = nn.Sequential(AddsOneRMSNorm())
    with pytest.raises(
        UserError, match="a AddsOneRMSNorm; accepted: a network with normalisation layers of tokens; it has none"
    ):
        replace_layers(network, [Replacement.model_validate({"match": "0", "with": RMS})], None)


EVERY_ATTENTION = {
    "bert": "*.attention.self",
    "vit": "*.attention",
    "distilbert": "*.attention",
    "albert": "*.attention",
}


def with_attention(model_type: str, layer: dict[str, Any]) -> Model:
    """A small network with attention of this kind, and the weights of `builders.model`."""
    model = Model(replaced(model_type, EVERY_ATTENTION[model_type], layer)).eval()
    model.network.load_state_dict(builders.model(model_type).network.state_dict())
    return model


@pytest.mark.parametrize("model_type", EVERY_ATTENTION)
def test_softmax_in_the_place_of_the_library_s_is_the_same(model_type: str) -> None:
    model = builders.model(model_type).eval()
    samples = builders.samples(model.config)
    torch.testing.assert_close(with_attention(model_type, {"kind": "softmax"})(samples), model(samples))


@pytest.mark.parametrize("kind", ["linear", "sigmoid", "softplus"])
@pytest.mark.parametrize("model_type", EVERY_ATTENTION)
def test_another_attention_leaves_out_padding_and_is_stored(model_type: str, kind: str, tmp_path: Path) -> None:
    model = with_attention(model_type, {"kind": kind})
    samples = builders.samples(model.config, 3)
    outputs = model(samples)
    assert not torch.allclose(outputs, builders.model(model_type).eval()(samples), atol=1e-9)
    torch.testing.assert_close(model(samples[1:2]), outputs[1:2], rtol=1e-4, atol=1e-5)
    save_model(model, tmp_path)
    torch.testing.assert_close(load_model(tmp_path)(samples), outputs, rtol=0, atol=0)


def test_a_decoder_s_attention_sees_no_later_token() -> None:
    shape = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    network = Transformers.model_validate(
        {
            **{"architecture": "transformers", "config": {"model_type": "gpt2", **shape}},
            "replace": [{"match": "*.attn", "with": {"kind": "sigmoid"}}],
        }
    )
    torch.manual_seed(0)
    model = Model(ModelConfig(task="causal-lm", architecture=network, input=TextInput(length=8, vocabulary=20))).eval()
    tokens = torch.arange(8).unsqueeze(0)
    changed = tokens.clone()
    changed[0, 5] = 19
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])
    steps, cache = [], None
    for place in range(8):
        hidden, cache = model.decode_step(tokens[:, place : place + 1], cache)
        steps.append(hidden.hidden @ hidden.weight.T)
    torch.testing.assert_close(torch.cat(steps, 1), before, rtol=1e-4, atol=1e-5)


def test_attention_that_adds_positions_to_products_is_refused() -> None:
    model = Model(replaced("swin", "swin.encoder.layers.?.blocks.?.attention", {"kind": "sigmoid"}))
    with pytest.raises(UserError, match="adds numbers to the products of queries and keys"):
        model(builders.samples(model.config))


def test_a_module_that_is_no_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"a Linear; accepted: attention layers, such as bert\.encoder"):
        Model(replaced("bert", "*.query", {"kind": "sigmoid"}))
