"""Module paths of built-in networks, in the order of their modules, from the description alone.

Losses name features by such paths, so a wrong one is refused before a network is built. For a network of the
Transformers library only the names of its tensors are known without building it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from app.recipe.students.architectures import (
    CifarResNet,
    CifarVgg,
    Mlp,
    MobileNetV2,
    Network,
    ShuffleNetV2,
    TextTransformer,
    Vit,
    WideResNet,
)
from app.recipe.students.shapes import (
    SHUFFLENET_BLOCKS,
    STAGES,
    WRN_BASE,
    basic_blocks,
    mobilenet_shape,
    vgg_stages,
)

Tree = Mapping[str, Any]
"""Submodules by name; a leaf is an empty tree."""
SUGGESTED, MOST = 3, 20


def module_paths(network: Network) -> list[str] | None:
    """All paths of the network's modules; none: they are only known after building it (`transformers`, `timm`)."""
    tree = _TREES.get(type(network))
    return None if tree is None else list(_walk(tree(network)))


def paths_of_tensors(names: Iterable[str]) -> list[str]:
    """Paths of the modules that have tensors of these names, and of their parents. Modules without tensors
    (activations, pooling, dropout) are not included."""
    found: dict[str, None] = {}
    for name in names:
        steps = name.split(".")[:-1]
        for length in range(1, len(steps) + 1):
            found[".".join(steps[:length])] = None
    return sorted(found, key=_natural)


def suggestions(path: str, known: Sequence[str]) -> list[str]:
    """Known paths that are similar to a wrong one, the most similar first."""
    return difflib.get_close_matches(path, known, n=SUGGESTED) or [each for each in known if "." not in each][:MOST]


def _natural(path: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts layer 10 after layer 9."""
    return [(step.isdigit(), int(step) if step.isdigit() else 0, step) for step in path.split(".")]


def _walk(tree: Tree, prefix: str = "") -> Iterator[str]:
    for name, inner in tree.items():
        yield prefix + name
        yield from _walk(inner, f"{prefix}{name}.")


def _leaves(*names: str) -> Tree:
    return {name: {} for name in names}


def _numbered(trees: Iterable[Tree]) -> Tree:
    return {str(number): tree for number, tree in enumerate(trees)}


def _sequence(length: int) -> Tree:
    """`length` numbered modules without submodules."""
    return _numbered([{}] * length)


def _mlp(student: Mlp) -> Tree:
    return _sequence(2 + 2 * len(student.hidden))  # flatten, then a layer and an activation by turns


def _cifar_resnet(student: CifarResNet) -> Tree:
    block = _leaves("conv1", "norm1", "conv2", "norm2", "relu1", "relu2")
    stage = _numbered([block] * basic_blocks(student))
    return {**_leaves("conv", "norm", "relu"), "stages": _numbered([stage] * STAGES), "head": {}}


def _wide_resnet(student: WideResNet) -> Tree:
    block = _leaves("norm1", "conv1", "norm2", "conv2", "relu1", "relu2")
    wider = {**block, "shortcut": {}}
    widths = [WRN_BASE, *(WRN_BASE * student.widen * 2**stage for stage in range(STAGES))]
    rest = [block] * (basic_blocks(student) - 1)
    stages = [_numbered([block if before == after else wider, *rest]) for before, after in pairwise(widths)]
    return {"conv": {}, "stages": _numbered(stages), **_leaves("norm", "relu", "head")}


def _vgg(student: CifarVgg) -> Tree:
    return {
        "stages": _numbered(_sequence(3 * len(widths)) for widths in vgg_stages(student)),
        **_leaves("pool", "head"),
    }


def _mobilenet_v2(student: MobileNetV2) -> Tree:
    stages = mobilenet_shape(student).stages
    block = {"layers": _sequence(8)}
    return {
        "stem": _sequence(3),
        "stages": _numbered(_numbered([block] * len(stage)) for stage in stages),
        "last": _sequence(3),
        "head": {},
    }


def _shufflenet_v2(student: ShuffleNetV2) -> Tree:
    unit = {"branch": _sequence(8)}
    stages = [_numbered([{"shortcut": _sequence(5), **unit}, *[unit] * units]) for units in SHUFFLENET_BLOCKS]
    return {"stem": _sequence(3), "stages": _numbered(stages), "last": _sequence(3), "head": {}}


def _of_blocks(student: Vit | TextTransformer) -> Tree:
    block = {
        "norm1": {},
        "attention": _leaves(student.attention.projections, "out", *student.attention.parts),
        "norm2": {},
        "feed_forward": _sequence(3),
    }
    return {"embed": {}, "blocks": _numbered([block] * student.depth), **_leaves("norm", "head")}


_TREES: dict[type, Callable[[Any], Tree]] = {
    Mlp: _mlp,
    CifarResNet: _cifar_resnet,
    WideResNet: _wide_resnet,
    CifarVgg: _vgg,
    MobileNetV2: _mobilenet_v2,
    ShuffleNetV2: _shufflenet_v2,
    Vit: _of_blocks,
    TextTransformer: _of_blocks,
}
