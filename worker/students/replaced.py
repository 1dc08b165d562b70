"""Builds layers of a library's network as another kind, in the place of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from app.recipe.students.module_paths import SUGGESTED
from app.recipe.students.replacements import Replacement
from worker.errors import UserError
from worker.students.layers.norms import TOKEN_NORMS


def replace_layers(network: nn.Module, replacements: Sequence[Replacement]) -> None:
    """Replace the matching layers of `network` in place; their scales and offsets start as the new layers define them.

    Raises UserError (`invalid_architecture`) naming the field, if a pattern matches no layer or one that can't be
    replaced.
    """
    for index, replacement in enumerate(replacements):
        param = f"student.replace.{index}.match"
        found = [path for path, _ in network.named_modules() if replacement.matches(path)]
        if not found:
            raise _unfit(param, f"{replacement.match} matches no module", _normalisation(network))
        for path in found:
            width = width_of_norm(network.get_submodule(path))
            if width is None:
                kind = type(network.get_submodule(path)).__name__
                raise _unfit(param, f"{replacement.match} matches {path}, a {kind}", _normalisation(network))
            network.set_submodule(path, TOKEN_NORMS.build(replacement.layer, width))


def is_replaced(tensor: str, replacements: Iterable[Replacement]) -> bool:
    """Whether the tensor of this name belongs to a replaced layer."""
    path = tensor.rpartition(".")[0]
    return any(replacement.matches(path) for replacement in replacements)


def width_of_norm(module: nn.Module) -> int | None:
    """Numbers of a token that a module normalises, if it scales them by its weight as the layers of jobs do; else
    none: its weight is added to 1, or its axes are others."""
    weight = getattr(module, "weight", None)
    plain = type(module) in (nn.LayerNorm, nn.RMSNorm) or type(module).__name__.endswith("RMSNorm")
    if not plain or not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    return len(weight) if weight.is_meta or bool((weight == 1).all()) else None


def _normalisation(network: nn.Module) -> str:
    paths = [path for path, module in network.named_modules() if width_of_norm(module) is not None]
    few = ", ".join(paths[:SUGGESTED])
    return f"normalisation layers of tokens, such as {few}" if paths else "a network with such layers; it has none"


def _unfit(param: str, found: str, accepted: str) -> UserError:
    return UserError("invalid_architecture", f"{found}; accepted: {accepted}", param)
