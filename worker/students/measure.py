"""What a network costs: counted on a copy that is built without memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from app.recipe.cost import Cost
from app.recipe.students.model import ImageInput, Input, ModelConfig, TableInput
from worker import students
from worker.optimizers.roles import hidden_matrices

_COSTS: dict[str, Cost] = {}
"""Costs by the description of the network: a job needs them several times, and a dry run takes some 0.1 s."""


def network_cost(config: ModelConfig) -> Cost:
    """Costs of the network that `config` describes, of one sample. Raises UserError."""
    key = config.model_dump_json()
    if key not in _COSTS:
        _COSTS[key] = _measured(config)
    return _COSTS[key]


def _measured(config: ModelConfig) -> Cost:
    """Built without memory where the network can do without values, as all but a few can. Weights drawn for it are none
    of the job's draws."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _run_once(config)
        except (RuntimeError, NotImplementedError):
            with students.blaming(config.architecture):
                return _run_once(config)


def example(sample: Input, batch: int = 1) -> Tensor:
    """Samples of zeros, as a network takes them: float32 (batch, C, H, W) or (batch, D), or int64 (batch, S)."""
    if isinstance(sample, ImageInput):
        return torch.zeros(batch, sample.channels, sample.height, sample.width)
    if isinstance(sample, TableInput):
        return torch.zeros(batch, sample.columns)
    return torch.zeros(batch, sample.length, dtype=torch.int64)


def _run_once(config: ModelConfig) -> Cost:
    network = students.build_described(config).eval()
    samples = example(config.input)
    kept = [samples.numel()]
    for leaf in network.modules():
        if not any(leaf.children()):
            leaf.register_forward_hook(_keeper(kept))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(samples)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    hidden = sum(weight.numel() for weight in hidden_matrices(network.parameters(), [network]))
    return Cost(parameters, counter.get_total_flops(), sum(kept), max(kept), hidden)


def _keeper(kept: list[int]) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            kept.append(output.numel())

    return keep


class Reading(NamedTuple):
    """What a decoder computes for a text: so much at every token, and for every pair of tokens."""

    per_token: int
    last_layer: int
    """Of `per_token`, what the last layer takes, which gives logits."""
    per_pair: int

    def of(self, length: int) -> int:
        """Operations of reading a text of so many tokens, with the logits at each of them."""
        return self.per_token * length + self.per_pair * length**2

    def writing(self, begin: int, length: int) -> int:
        """Operations of writing it behind its first `begin` tokens, each token read once (see `write`): they are read
        together, and every other but the very last with all that are before it; logits are made of what comes next."""
        attended = begin**2 + sum(range(begin + 1, length))
        return self.per_token * (length - 1) - self.last_layer * (begin - 1) + self.per_pair * attended


def reading(config: ModelConfig) -> Reading:
    """Found by dry runs on texts of two lengths."""
    sizes, counts = (8, 16), []
    for size in sizes:
        sample = config.input.model_copy(update={"length": size})
        counts.append(network_cost(config.model_copy(update={"input": sample})).flops)
    per_pair = (counts[1] - 2 * counts[0]) // (sizes[1] ** 2 - 2 * sizes[0] ** 2)
    return Reading(counts[0] // sizes[0] - per_pair * sizes[0], 2 * _width(config) * config.outputs, per_pair)


def _width(config: ModelConfig) -> int:
    """Numbers of a decoder's last hidden state."""
    with torch.device("meta"):
        network: Any = students.build_described(config)
    return int(network.get_output_embeddings().weight.shape[1])
