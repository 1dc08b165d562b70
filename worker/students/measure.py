"""Costs of a network, counted on a copy that is built without memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from app.recipe.cost import beside
from app.recipe.students.architectures import InpFormerNetwork
from app.recipe.students.model import Input, ModelConfig, TextInput
from app.recipe.tally import Cost
from worker import students
from worker.optimizers.roles import hidden_matrices
from worker.students.quantisers import QuantisedLayer

_COSTS: dict[str, Cost] = {}
"""Costs by the description of the network: a job needs them several times, and a dry run takes some 0.1 s."""


def network_cost(config: ModelConfig) -> Cost:
    """Costs of the network that `config` describes, for one sample. Raises UserError."""
    key = config.model_dump_json()
    if key not in _COSTS:
        _COSTS[key] = _measured(config)
    return _COSTS[key]


def _measured(config: ModelConfig) -> Cost:
    """Built without memory if the network runs without values, as nearly all do. Its initialisation does not change the
    job's random state."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _run_once(config)
        except (RuntimeError, NotImplementedError):
            with students.blaming(config.architecture):
                return _run_once(config)


def example(sample: Input, batch: int = 1) -> Tensor:
    """Samples of zeros for a network: float32 (batch, C, H, W) or (batch, D), or int64 (batch, S)."""
    dtype = torch.int64 if isinstance(sample, TextInput) else torch.float32
    return torch.zeros(batch, *sample.axes, dtype=dtype)


def _run_once(config: ModelConfig) -> Cost:
    network: Any = students.build_described(config).eval()
    if not isinstance(config.architecture, InpFormerNetwork):
        return _run(network, config)
    frozen, whole = _run(network.encoder, config), _run(network, config)
    own = replace(
        whole,
        parameters=whole.parameters - frozen.parameters,
        flops=whole.flops - frozen.flops,
        activations=whole.activations - frozen.activations,
    )
    return beside(frozen, own)


def _run(network: nn.Module, config: ModelConfig) -> Cost:
    """Costs of `network`, which takes the samples that `config` describes."""
    samples = example(config.input)
    sizes = [samples.numel()]
    for leaf in network.modules():
        if not any(leaf.children()) or isinstance(leaf, QuantisedLayer):
            leaf.register_forward_hook(_size_recorder(sizes))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(samples)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    hidden = sum(weight.numel() for weight in hidden_matrices(trained, [network]))
    return Cost(parameters, counter.get_total_flops(), sum(sizes), max(sizes), hidden)


def _size_recorder(sizes: list[int]) -> Any:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    return record


class Reading(NamedTuple):
    """Operations of a decoder for a text: per token, and per pair of tokens."""

    per_token: int
    last_layer: int
    """Part of `per_token` for the last layer, which computes logits."""
    per_pair: int

    def of(self, length: int) -> int:
        """Operations of reading a text of `length` tokens, with logits at each."""
        return self.per_token * length + self.per_pair * length**2

    def writing(self, begin: int, length: int) -> int:
        """Operations of generating a text of `length` tokens from its first `begin` tokens with a cache (see
        `decoding.generate`): these are read together, and every later one but the last attends to all before it; logits
        are computed for the next token alone."""
        attended = begin**2 + sum(range(begin + 1, length))
        return self.per_token * (length - 1) - self.last_layer * (begin - 1) + self.per_pair * attended


def reading(config: ModelConfig) -> Reading:
    """Operations of a decoder, from dry runs on texts of two lengths."""
    sizes, counts = (8, 16), []
    for size in sizes:
        sample = config.input.model_copy(update={"length": size})
        counts.append(network_cost(config.model_copy(update={"input": sample})).flops)
    per_pair = (counts[1] - 2 * counts[0]) // (sizes[1] ** 2 - 2 * sizes[0] ** 2)
    return Reading(counts[0] // sizes[0] - per_pair * sizes[0], 2 * _last_weights(config), per_pair)


def _last_weights(config: ModelConfig) -> int:
    """Weights of a decoder's last layer."""
    with torch.device("meta"):
        network: Any = students.build_described(config)
    return int(network.get_output_embeddings().weight.numel())
