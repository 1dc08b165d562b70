"""Rolling-back fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.methods.rollback import roll_back


def rollback(case: Case) -> Iterator[Comparison]:
    """Every tensor after a period has begun."""
    found = {name: tensor.clone() for name, tensor in _under("finetuned.", case).items()}
    roll_back(found, _under("pretrained.", case), case.hyper["keep_prefixes"])
    for name, tensor in found.items():
        yield Comparison("rollback", name, tensor, case.outputs[f"after.{name}"])


def _under(prefix: str, case: Case) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in case.inputs.items() if name.startswith(prefix)}
