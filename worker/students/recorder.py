"""Reads activations off a network while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from app.recipe.losses.taps import Tap
from app.recipe.students.module_paths import suggestions


class NoSuchModule(Exception):
    """A tap names a module that the network does not have, or one that gives no tensor; the text says which."""

    def __init__(self, tap: Tap, message: str) -> None:
        super().__init__(message)
        self.tap = tap


class Recorder:
    """Keeps what flows through a network at some taps, from one run to the next `take`.

    A module that runs several times keeps its last run. Hooks cost a few microseconds a tap; nothing is copied.
    """

    def __init__(self, network: nn.Module, taps: Iterable[Tap]) -> None:
        self._seen: dict[Tap, Tensor] = {}
        self._taps = tuple(dict.fromkeys(taps))
        if self._taps:
            _keep_what_enters(network)
        for tap in self._taps:
            self._hook(_find(network, tap), tap)

    def take(self) -> dict[Tap, Tensor]:
        """The activations of the last run; raises NoSuchModule when a module was not run or gave no tensor."""
        seen = {tap: self._seen[tap] for tap in self._taps if tap in self._seen}
        self._seen.clear()
        for tap in self._taps:
            if tap not in seen:
                raise NoSuchModule(tap, f"the {tap.at} of {tap.path!r} is no tensor, or the module does not run")
        return seen

    def _hook(self, module: nn.Module, tap: Tap) -> None:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
            value = output if tap.at == "output" else next(iter((*args, *kwargs.values())), None)
            if (tensor := _first_tensor(value)) is not None:
                self._seen[tap] = tensor

        if tap.at == "output":
            module.register_forward_hook(keep, with_kwargs=True)
        else:
            module.register_forward_pre_hook(keep, with_kwargs=True)


def _keep_what_enters(network: nn.Module) -> None:
    """An activation that works in place would overwrite what was seen before it."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # an attribute of activations and dropout


def _find(network: nn.Module, tap: Tap) -> nn.Module:
    try:
        return network.get_submodule(tap.path)
    except AttributeError as error:
        near = ", ".join(suggestions(tap.path, [name for name, _ in network.named_modules() if name]))
        raise NoSuchModule(tap, f"there is no module {tap.path!r}; near it are {near}") from error


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((item for item in values if isinstance(item, Tensor)), None)
