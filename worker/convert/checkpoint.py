"""Converts a file written by torch.save to `model.safetensors`, checked against the architecture before copying."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.recipe.students.model import ModelConfig
from app.recipe.teachers.key_map import Conversion
from worker import students
from worker.convert import Unconvertible

SHOWN = 5
COUNTER = "num_batches_tracked"
"""Counter of batch norm; nothing is computed from it, and files of old versions lack it."""


def expected_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of the architecture by name, on the meta device."""
    with torch.device("meta"):
        network = students.build_described(config)
    return network.state_dict()


def convert(source: Path, conversion: Conversion, expected: Mapping[str, Tensor], target: Path) -> None:
    """Write the weights of `source` under the names of `expected`. Raises `Unconvertible`, `MemoryError`."""
    stored = _weights(_read(source), conversion.checkpoint_key)
    try:
        names = conversion.key_map.apply(stored)
    except ValueError as error:
        raise Unconvertible(f"key_map: {error}") from error
    _check(names, stored, expected)
    found = {
        name: stored[names[name]].detach().clone(memory_format=torch.contiguous_format)
        for name in expected
        if name in names
    }
    counters = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in expected.items() if name not in names}
    save_file(found | counters, target, metadata={"format": "pt"})


def _read(source: Path) -> object:
    try:
        if source.suffix == ".safetensors":
            return load_file(source)
        return torch.load(source, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # any error for a malicious file
        if "can't allocate memory" in str(error):
            raise MemoryError from error
        raise Unconvertible("the file is damaged, or holds more than tensors and plain values") from error


def _weights(found: object, key: str | None) -> dict[str, Tensor]:
    if key is not None:
        if not isinstance(found, dict) or key not in found:
            raise Unconvertible(f"checkpoint_key: the file has no {key!r}; {_contents(found)}")
        found = found[key]
    if not isinstance(found, dict) or not any(isinstance(value, Tensor) for value in found.values()):
        where = "the file" if key is None else repr(key)
        raise Unconvertible(f"checkpoint_key: {where} is not a dictionary of tensors; {_contents(found)}")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def _contents(found: object) -> str:
    return f"it has {_some(found)}" if isinstance(found, dict) else f"it is {type(found).__name__}"


def _check(names: Mapping[str, str], stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises `Unconvertible` unless the file has the tensors of the architecture, and no others."""
    missing = [name for name in expected if name not in names and not name.endswith(COUNTER)]
    unknown = [name for name in names if name not in expected]
    if missing or unknown:
        lacks = f"lacks {_some(missing)}" if missing else ""
        has = f"has {_some(unknown)}, which the architecture does not have" if unknown else ""
        raise Unconvertible(f"after key_map, the file {' and '.join(filter(None, (lacks, has)))}")
    for name, old in names.items():
        _check_tensor(old, stored[old], expected[name])


def _check_tensor(name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise Unconvertible(f"tensor {name!r} has shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    if found.layout != torch.strided or found.is_quantized or found.device.type != "cpu":
        raise Unconvertible(f"tensor {name!r} is not a plain tensor")
    if found.is_floating_point() != expected.is_floating_point() or found.is_complex():
        raise Unconvertible(f"tensor {name!r} has dtype {found.dtype}, not {expected.dtype}")


def _some(names: Iterable[object]) -> str:
    listed = [repr(name)[:100] for name in names]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return (", ".join(listed[:SHOWN]) or "nothing") + more
