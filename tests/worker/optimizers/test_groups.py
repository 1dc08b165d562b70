"""Groups of parameters with settings of their own."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from app.recipe.optimizers import Optimizer
from worker.optimizers import build_optimizer
from worker.optimizers.groups import set_lr, unmatched

KINDS = [
    {"kind": "sgd", "lr": 0.1},
    {"kind": "adamw", "lr": 0.01},
    {"kind": "adamp", "lr": 0.01},
    {"kind": "sgdp", "lr": 0.1},
    {"kind": "sinkgd", "lr": 0.01},
    {"kind": "swan", "lr": 0.01},
]


def _spec(**fields: object) -> Optimizer:
    found: Optimizer = TypeAdapter[Optimizer](Optimizer).validate_python(fields)
    return found


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def _trained(network: nn.Module, optimizer: torch.optim.Optimizer, lr: float) -> dict[str, Tensor]:
    torch.manual_seed(1)
    for factor in (1.0, 0.5, 0.25):
        set_lr(optimizer, lr * factor)
        network(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def _grouped(network: nn.Module, spec: Optimizer) -> torch.optim.Optimizer:
    names = {parameter: name for name, parameter in network.named_parameters()}
    return build_optimizer(spec, network.parameters(), [network], names)


@pytest.mark.parametrize("fields", KINDS, ids=lambda fields: fields["kind"])
def test_a_group_that_repeats_the_settings_changes_nothing(fields: dict[str, object]) -> None:
    plain, grouped = _network(), _network()
    spec = _spec(**fields, groups=[{"match": "0", "lr": fields["lr"]}])
    expected = _trained(plain, build_optimizer(_spec(**fields), plain.parameters(), [plain]), spec.lr)
    found = _trained(grouped, _grouped(grouped, spec), spec.lr)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("fields", [*KINDS, {"kind": "nap"}], ids=lambda fields: fields["kind"])
def test_a_group_of_rate_0_stays(fields: dict[str, object]) -> None:
    network = _network()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    groups = [{"match": "0.*", "lr": 0.0}]
    inner = {"kind": "adamw", "lr": 0.01, "groups": groups}
    spec = _spec(kind="nap", inner=inner) if fields["kind"] == "nap" else _spec(**fields, groups=groups)
    found = _trained(network, _grouped(network, spec), spec.lr)
    moved = {name for name, tensor in found.items() if not torch.allclose(tensor, before[name], rtol=1e-6, atol=0)}
    assert moved == {name for name in before if not name.startswith("0.")}


def test_each_group_steps_as_an_optimizer_of_its_own_would() -> None:
    together, apart = _network(), _network()
    spec = _spec(kind="sgd", lr=0.1, weight_decay=0.1, groups=[{"match": "3", "lr": 0.02, "weight_decay": 0.0}])
    found = _trained(together, _grouped(together, spec), 0.1)
    low = torch.optim.SGD(list(apart[:3].parameters()), lr=0.1, momentum=0.9, weight_decay=0.1)
    high = torch.optim.SGD(list(apart[3].parameters()), lr=0.02, momentum=0.9)
    torch.manual_seed(1)
    for factor in (1.0, 0.5, 0.25):
        low.param_groups[0]["lr"], high.param_groups[0]["lr"] = 0.1 * factor, 0.02 * factor
        apart(torch.randn(8, 4)).square().sum().backward()
        for optimizer in (low, high):
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in apart.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-6, atol=1e-7)


def test_the_first_group_that_matches_has_a_parameter() -> None:
    network = _network()
    groups = [{"match": "*.bias", "weight_decay": 0.0}, {"match": "3", "lr": 0.2}]
    optimizer = _grouped(network, _spec(kind="sgd", lr=0.1, weight_decay=0.5, groups=groups))
    set_lr(optimizer, 0.1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    settings = {
        names[id(each)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for each in group["params"]
    }
    assert settings["3.weight"] == pytest.approx((0.2, 0.5))
    assert settings["3.bias"] == settings["0.bias"] == settings["1.bias"] == pytest.approx((0.1, 0.0))
    assert settings["0.weight"] == pytest.approx((0.1, 0.5))
    assert optimizer.defaults["lr"] == 0.1


def test_patterns_are_paths_or_names() -> None:
    names = ["stem.conv.weight", "layer1.0.conv.weight", "layer10.0.conv.weight", "head.bias"]
    groups = [{"match": match, "lr": 1.0} for match in ("layer1", "layer?.0", "*.bias", "head.weight", "conv", "l*")]
    assert unmatched(_spec(kind="sgd", lr=0.1, groups=groups), names) == [3, 4]


def test_what_an_optimizer_lacks_is_refused() -> None:
    with pytest.raises(ValidationError, match="groups can't have a weight_decay"):
        _spec(kind="normalized-gd", lr=1.0, groups=[{"match": "0", "weight_decay": 0.1}])
    with pytest.raises(ValidationError, match="belong to `inner`"):
        _spec(kind="nap", inner={"kind": "sgd", "lr": 0.1}, groups=[{"match": "0", "lr": 0.1}])
    with pytest.raises(ValidationError, match="must have lr, weight_decay, or both"):
        _spec(kind="sgd", lr=0.1, groups=[{"match": "0"}])
