"""A network whose leading slices are smaller networks (arXiv 2201.12507): runs these with its own weights, and copies
them out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from app.recipe.losses.taps import Tap
from app.recipe.students.model import ModelConfig
from app.recipe.students.searched import Axis
from app.recipe.students.shrink import LAYER, resized_model
from app.recipe.students.sub_spaces import SubNetwork, kept_of
from worker.students.model import Model
from worker.students.recorder import Recorder

Axes = dict[str, list[Axis | None]]
"""By the name of a tensor, the size that each of its axes follows: `width`, `hidden`, or none if all sub-networks have
the same."""


class SubModel(NamedTuple):
    """A sub-network without weights."""

    model: Model
    """On the meta device."""
    sources: dict[str, str]
    """Names of the super-network's tensors, by its own."""
    recorder: Recorder
    """Records its activations at the taps of the super-network's last layer."""
    taps: dict[Tap, Tap]
    """These taps, by its own."""


class SuperNetwork:
    """Sub-networks of the networks with the config of the largest one."""

    def __init__(self, largest: ModelConfig, networks: Sequence[SubNetwork], taps: Iterable[Tap] = ()) -> None:
        """`networks` are sizes of sub-networks, the largest first, and `taps` places in the largest one's last layer,
        where activations of all of them are recorded."""
        self.config, self.networks, self._taps = largest, list(networks), tuple(taps)
        self._built: dict[SubNetwork, SubModel] = {}

    def config_of(self, sizes: SubNetwork) -> ModelConfig:
        """Config of a sub-network."""
        return resized_model(self.config, sizes)

    def kept(self, sizes: SubNetwork) -> list[int]:
        """Numbers of the layers that a sub-network has, in the largest one."""
        return kept_of(sizes.layers, self.networks[0].layers)

    def sub_model(self, sizes: SubNetwork) -> SubModel:
        """A sub-network without weights, built once."""
        if sizes not in self._built:
            self._built[sizes] = self._build(sizes)
        return self._built[sizes]

    def state(self, whole: Model, sizes: SubNetwork) -> dict[str, Tensor]:
        """The sub-network's parameters and buffers by its own names: leading slices of those of the largest one,
        `whole`, in the same memory, of any shapes and dtypes."""
        model, sources, *_ = self.sub_model(sizes)
        given = dict(_tensors(whole))
        return {name: given[sources[name]][leading(like.shape)] for name, like in _tensors(model)}

    def call(self, whole: Model, sizes: SubNetwork, *, train: bool = False) -> Callable[[Tensor], Tensor]:
        """The sub-network as a function from raw samples to its outputs (see `Model`), with the weights of `whole`."""
        model = self.sub_model(sizes).model.train(train)
        state = self.state(whole, sizes)

        def run(samples: Tensor) -> Tensor:
            outputs: Tensor = functional_call(model, state, (samples,))
            return outputs

        return run

    def take(self, sizes: SubNetwork) -> dict[Tap, Tensor]:
        """Activations (B, ...) of the sub-network's last run, by the largest one's taps."""
        sub = self.sub_model(sizes)
        return {sub.taps[tap]: value for tap, value in sub.recorder.take().items()}

    @torch.no_grad()
    def extract(self, whole: Model, sizes: SubNetwork) -> Model:
        """A copy of the sub-network as a model of its own, on the device of `whole`."""
        with torch.random.fork_rng(devices=[]):
            model = Model(self.config_of(sizes), input_key=whole.input_key)
        model.to(next(whole.parameters()).device)
        state = self.state(whole, sizes)
        for name, tensor in _tensors(model):
            tensor.copy_(state[name])
        return model.train(whole.training)

    @cached_property
    def axes(self) -> Axes:
        """The sizes that the axes of the network's tensors follow."""
        largest = self.networks[0]
        head = largest.width // largest.heads
        changed: dict[Axis, SubNetwork] = {
            "width": largest._replace(width=largest.width + head, heads=largest.heads + 1),
            "hidden": largest._replace(hidden=largest.hidden + 1),
        }
        shapes = {size: self._shapes(sizes) for size, sizes in changed.items()}
        return {
            name: [
                next((size for size in changed if shapes[size][name][axis] != length), None)
                for axis, length in enumerate(shape)
            ]
            for name, shape in self._shapes(largest).items()
        }

    def _shapes(self, sizes: SubNetwork) -> dict[str, torch.Size]:
        """Shapes of the tensors of the network in these sizes, which may be above the largest one's."""
        return {name: tensor.shape for name, tensor in _on_meta(self.config_of(sizes)).network.state_dict().items()}

    def _build(self, sizes: SubNetwork) -> SubModel:
        model, kept = _on_meta(self.config_of(sizes)), self.kept(sizes)
        sources = {name: _with_layer(name, kept) for name, _ in _tensors(model)}
        taps = {_in_last_layer(tap, sizes.layers): tap for tap in self._taps}
        return SubModel(model, sources, Recorder(model.network, taps), taps)


def leading(shape: torch.Size) -> tuple[slice, ...]:
    """The index of the leading part of this shape."""
    return tuple(slice(0, size) for size in shape)


def _in_last_layer(tap: Tap, layers: int) -> Tap:
    return tap.model_copy(update={"path": _with_layer(tap.path, [layers - 1] * 1000)})


def _with_layer(name: str, numbers: Sequence[int]) -> str:
    """The name with the number n of its layer replaced by `numbers[n]`; names outside of layers are not changed."""
    found = LAYER.match(name)
    return f"{found[1]}{numbers[int(found[2])]}{found[3]}" if found else name


def _tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _on_meta(config: ModelConfig) -> Model:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return Model(config)
