"""Which activations a network accepts, and how a wrong one is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.recipe.students.architectures import CifarResNet, Mlp, Vit
from app.recipe.students.layers import OptimalHermite, Relu, Selu, Silu


@pytest.mark.parametrize("kind", ["selu", "optimal-hermite"])
@pytest.mark.parametrize("network", [CifarResNet, Vit])
def test_what_replaces_norms_is_for_networks_without_them(kind: str, network: type[CifarResNet | Vit]) -> None:
    with pytest.raises(ValidationError) as caught:
        network.model_validate({"architecture": network().architecture, "activation": {"kind": kind}})
    [error] = caught.value.errors()
    assert error["loc"] == ("activation",)
    assert error["msg"].endswith(f"{kind} is for mlp, which has no norms; accepted: relu, leaky-relu, gelu, silu")


def test_an_mlp_takes_every_kind_and_is_described_as_before_with_the_default() -> None:
    assert Mlp(activation=Relu()).model_dump() == Mlp().model_dump()
    assert "activation" not in Mlp().model_dump()
    for activation in (Selu(alpha_dropout=0.1), OptimalHermite(dimension=5), Silu()):
        network = Mlp(activation=activation)
        assert Mlp.model_validate_json(network.model_dump_json()) == network
