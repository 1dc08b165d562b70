"""Records activations of a network during its forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from app.recipe.losses.taps import Tap
from app.recipe.students.module_paths import suggestions


class NoSuchModule(Exception):
    """A tap names a module that the network does not have, or one without a tensor; the text names it."""

    def __init__(self, tap: Tap, message: str) -> None:
        super().__init__(message)
        self.tap = tap


class Recorder:
    """Records activations at some taps, from a forward pass to the next `take`.

    For a module that runs several times the last run is recorded. Hooks cost a few microseconds per tap; nothing is
    copied.
    """

    def __init__(self, network: nn.Module, taps: Iterable[Tap]) -> None:
        self._seen: dict[Tap, Tensor] = {}
        self.taps = tuple(dict.fromkeys(taps))
        self._changed = _disable_inplace(network) if self.taps else []
        self._handles = [self._hook(_find(network, tap), tap) for tap in self.taps]

    def take(self) -> dict[Tap, Tensor]:
        """The activations (N, ...) of the last run; raises NoSuchModule if a module did not run or has no tensor."""
        found = {tap: self._seen[tap] for tap in self.taps if tap in self._seen}
        self._seen.clear()
        for tap in self.taps:
            if tap not in found:
                raise NoSuchModule(tap, f"the {tap.at} of {tap.path!r} is no tensor, or the module does not run")
        return found

    def seen(self) -> list[Tap]:
        """The taps with a tensor since the last `take`."""
        return [tap for tap in self.taps if tap in self._seen]

    def close(self) -> None:
        """Leave the network as it was."""
        self._seen.clear()
        for handle in self._handles:
            handle.remove()
        for module in self._changed:
            module.inplace = True  # type: ignore[assignment]  # an attribute of activations and dropout

    def _hook(self, module: nn.Module, tap: Tap) -> RemovableHandle:
        record = _Hook(self._seen, tap)
        if tap.at == "output":
            return module.register_forward_hook(record, with_kwargs=True)
        return module.register_forward_pre_hook(record, with_kwargs=True)


class _Hook:
    """Puts what a module takes or returns into `seen`; an object, so that copies of a network with a recorder have one
    of their own."""

    def __init__(self, seen: dict[Tap, Tensor], tap: Tap) -> None:
        self._seen, self._tap = seen, tap

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        value = output if self._tap.at == "output" else next(iter((*args, *kwargs.values())), None)
        if (tensor := _first_tensor(value)) is not None:
            self._seen[self._tap] = tensor


def _disable_inplace(network: nn.Module) -> list[nn.Module]:
    """Turn off in-place activations, which would overwrite recorded inputs, and return them."""
    changed = [module for module in network.modules() if getattr(module, "inplace", False)]
    for module in changed:
        module.inplace = False  # type: ignore[assignment]  # an attribute of activations and dropout
    return changed


def _find(network: nn.Module, tap: Tap) -> nn.Module:
    try:
        return network.get_submodule(tap.path)
    except AttributeError as error:
        near = ", ".join(suggestions(tap.path, [name for name, _ in network.named_modules() if name]))
        raise NoSuchModule(tap, f"there is no module {tap.path!r}; similar names: {near}") from error


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((item for item in values if isinstance(item, Tensor)), None)
