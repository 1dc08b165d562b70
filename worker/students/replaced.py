"""Builds layers of a library's network as another kind, in the place of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from app.recipe.students.layers import NormSpec
from app.recipe.students.module_paths import SUGGESTED
from app.recipe.students.replacements import Replacement
from worker.errors import UserError
from worker.students.layers.norms import TOKEN_NORMS
from worker.students.replaced_attention import has_replaceable_attention, set_attention


def replace_layers(network: nn.Module, replacements: Sequence[Replacement], tokens: int | None) -> None:
    """Replace the matching layers of `network` in place; scales and offsets of norms start as the new layers define
    them. `tokens` are the most that a sample has; none: they are unknown.

    Raises UserError (`invalid_architecture`) naming the field, if a pattern matches no layer or one that can't be
    replaced.
    """
    for index, replacement in enumerate(replacements):
        param, layer = f"student.replace[{index}].match", replacement.layer
        if isinstance(layer, NormSpec):
            for path, norm in _matching(network, replacement, param, _is_norm, "normalisation layers of tokens"):
                network.set_submodule(path, TOKEN_NORMS.build(layer, width_of_norm(norm)))
        else:
            for _, module in _matching(network, replacement, param, has_replaceable_attention, "attention layers"):
                set_attention(module, layer, tokens)


def _matching(
    network: nn.Module, replacement: Replacement, param: str, fits: Callable[[nn.Module], bool], what: str
) -> list[tuple[str, nn.Module]]:
    """Paths and modules that match, all of which fit."""
    found = [(path, module) for path, module in network.named_modules() if replacement.matches(path)]
    if wrong := next((f"{path}, a {type(module).__name__}" for path, module in found if not fits(module)), None):
        raise _unfit(network, param, f"{replacement.match} matches {wrong}", fits, what)
    if not found:
        raise _unfit(network, param, f"{replacement.match} matches no module", fits, what)
    return found


def _unfit(network: nn.Module, param: str, found: str, fits: Callable[[nn.Module], bool], what: str) -> UserError:
    paths = [path for path, module in network.named_modules() if fits(module)]
    few = f"{what}, such as {', '.join(paths[:SUGGESTED])}" if paths else f"a network with {what}; it has none"
    return UserError("invalid_architecture", f"{found}; accepted: {few}", param)


def is_replaced(tensor: str, replacements: Iterable[Replacement]) -> bool:
    """Whether the tensor of this name belongs to a replaced norm; attention keeps its tensors."""
    path = tensor.rpartition(".")[0]
    return any(isinstance(each.layer, NormSpec) and each.matches(path) for each in replacements)


def width_of_norm(module: nn.Module) -> int:
    """Numbers of a token that a module normalises, if it scales them by its weight as the layers of jobs do; else 0:
    its weight is added to 1, or its axes are others."""
    weight = getattr(module, "weight", None)
    plain = type(module) in (nn.LayerNorm, nn.RMSNorm) or type(module).__name__.endswith("RMSNorm")
    if not plain or not isinstance(weight, Tensor) or weight.ndim != 1:
        return 0
    return len(weight) if weight.is_meta or bool((weight == 1).all()) else 0


def _is_norm(module: nn.Module) -> bool:
    return width_of_norm(module) > 0
