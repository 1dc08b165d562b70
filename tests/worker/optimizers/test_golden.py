"""Trajectories against the authors' own code, in float64: parameters after 1, 2 and 10 steps on given gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.golden import Case, cases
from worker.optimizers import AdamP, SgdP

STEPS = 10


def case_ids(case: Case) -> str:
    return case.name


def run(case: Case, kind: type[AdamP] | type[SgdP], **more: bool) -> dict[str, Tensor]:
    """Parameters by "<name>.step<t>"."""
    names = [key.removeprefix("param.") for key in case.inputs if key.startswith("param.")]
    parameters = {name: nn.Parameter(case.inputs[f"param.{name}"].clone()) for name in names}
    optimizer = kind(list(parameters.values()), **case.hyper, **more)
    found = {}
    for step in range(STEPS):
        for name, parameter in parameters.items():
            parameter.grad = case.inputs[f"grads.{name}"][step].clone()
        optimizer.step()
        found |= {f"{name}.step{step + 1}": parameter.detach().clone() for name, parameter in parameters.items()}
    return found


def assert_equal(found: dict[str, Tensor], case: Case, prefix: str) -> None:
    expected = {key.removeprefix(prefix): value for key, value in case.outputs.items() if key.startswith(prefix)}
    assert expected
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("case", cases("adamp"), ids=case_ids)
def test_adamp_equals_authors_code(case: Case) -> None:
    assert_equal(run(case, AdamP), case, "param.")


@pytest.mark.parametrize("case", cases("sgdp"), ids=case_ids)
def test_sgdp_equals_authors_code(case: Case) -> None:
    assert_equal(run(case, SgdP), case, "param.")


@pytest.mark.parametrize("case", cases("sgdp"), ids=case_ids)
def test_sgdp_with_a_clean_buffer_equals_the_paper(case: Case) -> None:
    if case.hyper["nesterov"]:
        pytest.skip("with nesterov the authors' code leaves the buffer clean itself")
    assert_equal(run(case, SgdP, project_buffer=False), case, "clean_buffer.param.")
