"""What a network costs, where only building it can tell: counted on a copy without memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from app.recipe.cost import Cost, student_cost
from app.recipe.model import ImageInput, Input, ModelConfig, TableInput
from worker import students
from worker.optimizers.roles import hidden_matrices
from worker.students import hugging_face


def network_cost(config: ModelConfig) -> Cost:
    """Costs of the network that `config` describes: from its description where that is enough, else from a dry run."""
    known = student_cost(config.architecture, config.input, config.outputs)
    return known or _dry_run(config)


def example(sample: Input, batch: int = 1) -> Tensor:
    """Samples of zeros, as a network takes them: float32 (batch, C, H, W) or (batch, D), or int64 (batch, S)."""
    if isinstance(sample, ImageInput):
        return torch.zeros(batch, sample.channels, sample.height, sample.width)
    if isinstance(sample, TableInput):
        return torch.zeros(batch, sample.columns)
    return torch.zeros(batch, sample.length, dtype=torch.int64)


def _dry_run(config: ModelConfig) -> Cost:
    """Without memory where the network can do without values, as all but a few can. Raises UserError."""
    try:
        with torch.device("meta"):
            return _run_once(config)
    except (RuntimeError, NotImplementedError):
        with hugging_face.blaming_the_config(config.architecture):  # type: ignore[arg-type]  # the zoo needs no dry run
            return _run_once(config)


def _run_once(config: ModelConfig) -> Cost:
    network = students.build(config.architecture, config.input, config.outputs, config.embedding).eval()
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
