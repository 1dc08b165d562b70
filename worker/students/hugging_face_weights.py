"""Stored weights of networks of the Transformers library: read into a network, taken over by another, and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from app.recipe.students.architectures import Transformers
from app.recipe.students.heads import VqLogits
from app.recipe.students.model import ModelConfig
from worker.students.faults import Misfit
from worker.students.hugging_face import (
    UNUSED,
    bare_class,
    build,
    library_config,
    network_class,
    options_of,
    without_pooler,
)
from worker.students.leftovers import leftovers
from worker.students.library_codebook import full_rows, load_codebook
from worker.students.replaced import is_replaced
from worker.transformers_library import blaming_the_config, library

ONE_FILE = "1000GB"
SLACK = 1_000_000
"""Weights that a file may lack and the network is still built, so that each missing one can be named."""


def from_state(config: ModelConfig, state: Mapping[str, Tensor]) -> tuple[nn.Module, list[str]]:
    """The network of `config` with stored weights of any dtype, under the library's present or former names, in
    float32; and the names of tensors that were ignored because they are left from its pretraining.

    Raises Misfit, or UserError as `build` does.
    """
    network, found = _loaded(config, state)
    ignored = _leftovers(network, config, found)
    _require_all({**found, "unexpected_keys": set(found["unexpected_keys"]) - set(ignored)})
    return network, ignored


def _leftovers(network: Any, config: ModelConfig, found: Mapping[str, Any]) -> list[str]:
    table = library().models.auto.modeling_auto
    unexpected = [name for name in found["unexpected_keys"] if not _is_replaced(name, config)]
    return leftovers(unexpected, network.config, network.base_model_prefix, table)


class Started(NamedTuple):
    """Tensors that a network did not get from the stored weights, or that these have for nothing, by name."""

    ignored: list[str]
    """Stored tensors that are left from a pretraining."""
    dropped: list[str]
    """Stored tensors of layers that were replaced by others without them."""
    fresh: list[str]
    """Tensors of layers that were replaced, for which nothing is stored."""


@torch.no_grad()
def start_from(network: nn.Module, config: ModelConfig, state: Mapping[str, Tensor]) -> Started:
    """Copy stored weights of any dtype into a fresh `network` of `config`. Its head stays fresh if the stored network
    has another head or none, and so do replaced layers for which nothing is stored. Raises Misfit, or UserError as
    `build` does."""
    loaded, found = _loaded(config, state)
    ignored = _leftovers(loaded, config, found)
    found = {**found, "unexpected_keys": set(found["unexpected_keys"]) - set(ignored)}
    named = {key: {_name(fault): fault for fault in found[key]} for key in _FAULTS}

    def is_excused(name: str) -> bool:
        return _is_replaced(name, config) or _is_of_the_head(name, loaded, config)

    wrong = {key: [fault for name, fault in named[key].items() if not is_excused(name)] for key in _FAULTS}
    _require_all({**found, **wrong})
    fresh = {*named["missing_keys"], *named["mismatched_keys"]}
    stored = loaded.state_dict()
    for name, tensor in network.state_dict().items():
        if name not in fresh:
            tensor.copy_(stored[name])
    dropped = [name for name in named["unexpected_keys"] if _is_replaced(name, config)]
    return Started(ignored, sorted(dropped), sorted(name for name in fresh if _is_replaced(name, config)))


_FAULTS = ("missing_keys", "mismatched_keys", "unexpected_keys")


def _name(fault: Any) -> str:
    return fault if isinstance(fault, str) else str(fault[0])


def _is_replaced(name: str, config: ModelConfig) -> bool:
    network = config.architecture
    return isinstance(network, Transformers) and is_replaced(name, network.replace)


def _is_of_the_head(name: str, network: Any, config: ModelConfig) -> bool:
    """Whether this tensor is the head's, which may be for another task than the job's."""
    outside = config.has_head and not name.startswith(f"{network.base_model_prefix}.")
    return outside or UNUSED in name


def _loaded(config: ModelConfig, state: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network with the fitting tensors of `state`, and the report on the others."""
    student = config.architecture
    assert isinstance(student, Transformers)
    if isinstance(student.head, VqLogits):
        return load_codebook(config, state, _loaded)
    _require_enough(config, state)
    with blaming_the_config(student):
        described = library_config(student, config.input, config.outputs)
        if config.pooling is not None and without_pooler(bare_class(described)):
            state = {name: tensor for name, tensor in state.items() if not name.startswith(UNUSED)}
        per_token = config.task_spec.per_token
        kind = network_class(described, student, config.input, config.pooling, per_token=per_token)
        options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **options_of(described, student)}
        return kind.from_pretrained(None, config=described, state_dict=dict(state), **options)  # type: ignore[no-any-return]


def save(network: nn.Module, config: ModelConfig, folder: Path) -> None:
    """Write the library's `config.json`, with the names of the classes, and `model.safetensors` into `folder`.

    A codebook is written as the layer that the library has, with a row for every token, and the codes beside it, which
    the library passes over.
    """
    described: Any = network.config
    if config.has_head:
        _name_classes(described, config)
    library()
    network.save_pretrained(folder, max_shard_size=ONE_FILE, **full_rows(network))  # type: ignore[operator]  # of PreTrainedModel


def _name_classes(described: Any, config: ModelConfig) -> None:
    names = config.class_names or [f"LABEL_{number}" for number in range(config.outputs)]
    described.id2label = dict(enumerate(names))
    described.label2id = {name: number for number, name in enumerate(names)}
    described.problem_type = config.task_spec.problem_type


def _require_enough(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Raise Misfit for a description of far more weights than are stored; the network is built without memory for
    it."""
    with torch.device("meta"):
        outputs = config.outputs, config.pooling
        network = build(config.architecture, config.input, *outputs, per_token=config.task_spec.per_token)  # type: ignore[arg-type]
    needed = sum(parameter.numel() for parameter in network.parameters())
    stored = sum(tensor.numel() for tensor in state.values())
    if needed > 2 * stored + SLACK:
        raise Misfit(f"has {stored} weights, the configuration describes {needed}")


def _require_all(found: Mapping[str, Any]) -> None:
    for name in sorted(found["missing_keys"]):
        raise Misfit(f"lacks the tensor {name!r}")
    for name, stored, expected in sorted(found["mismatched_keys"]):
        raise Misfit(f"tensor {name!r} has shape {tuple(stored)}, not {tuple(expected)}")
    for name in sorted(found["unexpected_keys"]):
        raise Misfit(f"has a tensor {name!r} that the architecture does not have")
    for message in found["error_msgs"]:
        raise Misfit(message)
