"""Which teachers can be converted, and to what."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.students.architectures import CifarResNet, Network, Transformers, Vit
from app.recipe.students.conversion import Convert
from app.recipe.students.converted import converted
from app.recipe.students.heads import NormalisedHead
from app.recipe.students.layers import CrmsNorm, LayerNorm, PowerNorm, Relu, RmsNorm
from app.recipe.students.model import ModelConfig
from app.recipe.students.shapes import attention_width, feed_forward_width
from app.recipe.students.started import Unshrinkable

IMAGE: dict[str, Any] = {"channels": 1, "height": 8, "width": 8}
VIT = Vit(patch_size=4, width=12, depth=2, heads=3, mlp_ratio=1.7, activation=Relu())
TO_CRMS = Convert(to="pre-crmsnorm")


def described(network: Network) -> ModelConfig:
    given = {"mean": [0.0], "std": [1.0]}
    return ModelConfig.model_validate({"architecture": network, "input": IMAGE, "preprocessing": given, "classes": 3})


def test_only_the_norms_change_or_the_width_with_them() -> None:
    assert converted(Convert(), described(VIT)) == VIT.model_copy(update={"norm": RmsNorm(eps=1e-5)})
    narrow = converted(TO_CRMS, described(VIT))
    assert (narrow.width, attention_width(narrow), narrow.norm) == (11, 12, CrmsNorm(eps=1e-5))
    assert feed_forward_width(narrow) == feed_forward_width(VIT) == 20
    assert ModelConfig.model_validate_json(described(narrow).model_dump_json()).architecture == narrow


def test_a_network_of_the_library_becomes_one_of_this_project() -> None:
    config = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
    found = converted(Convert(), described(Transformers(config={**config, "intermediate_size": 20})))
    assert found == Vit(patch_size=4, width=8, depth=2, heads=2, mlp_ratio=2.5, norm=RmsNorm(eps=1e-12))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            CifarResNet(),
            "type cifar-resnet can't be converted, only a vision transformer",
        ),
        (VIT.model_copy(update={"norm": RmsNorm()}), "norms of kind rms"),
        (VIT.model_copy(update={"norm": PowerNorm()}), "norms of kind power"),
        (VIT.model_copy(update={"head": NormalisedHead()}), "the head normalised"),
        (Transformers(config={"model_type": "vit", "hidden_act": "gelu_new"}), "the teacher's activation is gelu_new"),
        (Transformers(config={"model_type": "deit"}), "a teacher of type deit"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_other_teachers_are_refused_with_the_reason(network: Network, message: str) -> None:
    with pytest.raises(Unshrinkable, match=message):
        converted(Convert(), described(network))


def test_a_decoder_is_refused() -> None:
    text = {"length": 8, "vocabulary": 16, "pad": 0}
    network = Transformers(config={"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2})
    config = ModelConfig.model_validate({"task": "causal-lm", "architecture": network, "input": text})
    with pytest.raises(Unshrinkable, match="type gpt2 can't be converted"):
        converted(TO_CRMS, config)


def test_tokens_of_one_number_can_not_lose_it() -> None:
    with pytest.raises(Unshrinkable, match="tokens have one number"):
        converted(TO_CRMS, described(Vit(width=1, heads=1, norm=LayerNorm())))
