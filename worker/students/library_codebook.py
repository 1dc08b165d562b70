"""Codebooks as last layers of networks of the Transformers library, which has a row of weights for every output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from app.recipe.students.architectures import Transformers
from app.recipe.students.heads import LinearHead, VqLogits
from app.recipe.students.model import ModelConfig
from worker.students.faults import Misfit
from worker.students.heads.vq_logits import CodebookHead, codebook_in_place_of, codebook_of, require_fewer
from worker.students.last_linear import last_linear

CODES = ".codes"
"""End of the name of the codes of a codebook's outputs in the file of weights."""
UNTIED = {"tie_word_embeddings": False}
"""Of a decoder with a codebook, whose rows are not the embeddings of tokens."""
LAST_LAYER = "lm_head"
"""Name of the last layer of all decoders."""
Loaded = tuple[nn.Module, Mapping[str, Any]]
"""A network, and the library's report on the tensors that did not fit."""


def set_codebook(network: Any, head: VqLogits, outputs: int, *, decodes: bool) -> None:
    """Put a fresh codebook in the place of the last layer, which has `outputs`, or those of a vocabulary if the network
    `decodes`. Raises UserError (`invalid_architecture`) unless there are fewer codes."""
    name = _name(network, outputs, decodes=decodes)
    layer = network.get_submodule(name)
    require_fewer(head, len(layer.weight))
    network.set_submodule(name, codebook_in_place_of(layer, head.codes))


def load_codebook(
    config: ModelConfig, state: Mapping[str, Tensor], load: Callable[[ModelConfig, Mapping[str, Tensor]], Loaded]
) -> Loaded:
    """The network of `config` with the fitting tensors of `state`, which has a row for every output, and their codes;
    `load` loads networks of the library. Raises Misfit."""
    student = config.architecture
    assert isinstance(student, Transformers)  # by the caller, as its head
    assert isinstance(student.head, VqLogits)
    settings = {**student.config, **(UNTIED if student.decodes else {})}
    full = student.model_copy(update={"config": settings, "head": LinearHead()})
    found = {key: tensor for key, tensor in state.items() if key.endswith(CODES)}
    rest = {key: tensor for key, tensor in state.items() if key not in found}
    network, report = load(config.model_copy(update={"architecture": full}), rest)
    name = _name(network, config.outputs, decodes=student.decodes)
    if (key := name + CODES) not in found:
        raise Misfit(f"lacks the tensor {key!r}")
    layer: Any = network.get_submodule(name)
    try:
        head = codebook_of(layer, found[key].long(), student.head.codes)
    except ValueError as error:
        raise Misfit(f"tensor {key!r} {error}") from error
    network.set_submodule(name, head)
    return network, report


def full_rows(network: nn.Module) -> dict[str, Any]:
    """The library's argument with the tensors to write, if the last layer is a codebook; empty otherwise."""
    found = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, CodebookHead)]
    full = {f"{name}.{key}": tensor for name, layer in found for key, tensor in layer.full().items()}
    return {"state_dict": {**network.state_dict(), **full}} if full else {}


def _name(network: nn.Module, outputs: int, *, decodes: bool) -> str:
    name = LAST_LAYER if decodes else last_linear(network, outputs)
    assert name is not None  # every classifier of the library ends in a linear layer
    return name
