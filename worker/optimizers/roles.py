"""Roles of parameters: some optimizers treat hidden layers' matrices and normalisation layers differently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn


def hidden_matrices(parameters: Iterable[nn.Parameter], modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The `parameters` that are weights of hidden layers: matrices, without embeddings and the last one.

    A matrix has more than one row and column. Rows are output channels; kernels of convolutions are viewed as
    (channels, rest). The last matrix of each of `modules`, in the order of registration, is its output layer.
    """
    excluded = {weight for module in modules for weight in _not_hidden(module)}
    return [parameter for parameter in parameters if _is_matrix(parameter) and parameter not in excluded]


def scales_and_offsets(parameters: Iterable[nn.Parameter], modules: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    """Scale, and offset if there is one, of each normalisation layer with parameters in `parameters`."""
    wanted = set(parameters)
    found = [list(layer.parameters(recurse=False)) for module in modules for layer in normalisations(module)]
    return [kept for pair in found if (kept := [parameter for parameter in pair if parameter in wanted])]


def normalisations(module: nn.Module) -> Iterator[nn.Module]:
    """Normalisation layers of any library: `norm` is in their class name, and their parameters are vectors.

    Classes called `Normalize` preprocess samples and are left out.
    """
    for layer in module.modules():
        name = type(layer).__name__.lower()
        vectors = all(parameter.ndim == 1 for parameter in layer.parameters())
        if "norm" in name and "normali" not in name and vectors and not list(layer.children()):
            yield layer


def _not_hidden(module: nn.Module) -> Iterator[nn.Parameter]:
    last = None
    for layer in module.modules():
        for parameter in layer.parameters(recurse=False):
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
                yield parameter
            if _is_matrix(parameter):
                last = parameter
    if last is not None:
        yield last


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and min(len(parameter), parameter.numel() // max(1, len(parameter))) > 1
