"""Parts of a network, from its input to its output."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

STAGES = 4
"""Blocks up to which each is a group; more of them are divided into `THIRDS`."""
THIRDS = 3


def depth_groups(network: nn.Module) -> list[list[str]]:
    """Paths of modules, or names of parameters, of the network's groups from the lowest: what is registered before its
    blocks, then each of up to four stages, or equal thirds of more blocks. Empty for a network without blocks.

    The blocks are the children of the `nn.ModuleList` or `nn.Sequential` within the network that holds most parameters.
    """
    containers = {
        path: module
        for path, module in network.named_modules()
        if path and isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and _size(module)
    }
    if not containers:
        return []
    path = max(containers, key=lambda each: _size(containers[each]))  # the first of equals, which is the outermost
    blocks = [f"{path}.{number}" for number in range(len(containers[path]))]
    groups = [[block] for block in blocks] if len(blocks) <= STAGES else _thirds(blocks)
    stem = _before(network, path)
    return [stem, *groups] if stem else groups


def _before(network: nn.Module, path: str) -> list[str]:
    """Paths of the modules that own the parameters registered before those under `path`; a parameter of the network
    itself by its name."""
    found: dict[str, None] = {}
    for name, _ in network.named_parameters():
        if name.startswith(f"{path}."):
            break
        found[name.rpartition(".")[0] or name] = None
    return list(found)


def _thirds(blocks: Sequence[str]) -> list[list[str]]:
    ends = [round(len(blocks) * part / THIRDS) for part in range(THIRDS + 1)]
    return [list(blocks[first:last]) for first, last in pairwise(ends)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
