"""Trajectories of optimizers: parameters after given steps on given gradients."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.optimizers import AdamP, SgdP


def adamp(case: Case) -> Iterator[Comparison]:
    yield from _against(case, "adamp", "param.", _run(case, AdamP))


def sgdp(case: Case) -> Iterator[Comparison]:
    yield from _against(case, "sgdp", "param.", _run(case, SgdP))
    if not case.hyper["nesterov"]:  # with nesterov the authors' code leaves the buffer clean itself
        yield from _against(case, "sgdp", "clean_buffer.param.", _run(case, SgdP, project_buffer=False))


def _run(case: Case, optimizer_class: type[AdamP] | type[SgdP], **more: bool) -> dict[str, Tensor]:
    """Parameters by "<name>.step<t>"."""
    names = [key.removeprefix("param.") for key in case.inputs if key.startswith("param.")]
    parameters = {name: nn.Parameter(case.inputs[f"param.{name}"].clone()) for name in names}
    optimizer = optimizer_class(list(parameters.values()), **case.hyper, **more)
    found = {}
    for step in range(len(case.inputs[f"grads.{names[0]}"])):
        for name, parameter in parameters.items():
            parameter.grad = case.inputs[f"grads.{name}"][step].clone()
        optimizer.step()
        found |= {f"{name}.step{step + 1}": parameter.detach().clone() for name, parameter in parameters.items()}
    return found


def _against(case: Case, kind: str, prefix: str, found: dict[str, Tensor]) -> Iterator[Comparison]:
    pattern = re.compile(re.escape(prefix) + r"(.+\.step\d+)")
    for output, expected in case.outputs.items():
        if match := pattern.fullmatch(output):
            yield Comparison(kind, output, found[match[1]], expected)
