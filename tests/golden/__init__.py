"""Golden vectors: reads files of them, and holds this package against them (`python -m tests.golden FOLDER`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One run of the code that the vectors come from; floating inputs are float64."""

    method: str
    name: str
    hyper: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    path: Path = HERE
    """The file."""


class UnknownLayout(ValueError):
    """The file is no archive of cases as the README of this folder describes them."""


class NothingToCompare(Exception):
    """A case is about something that this package does not compute; the message says what."""


def read_method(path: Path) -> str:
    """Name of the method that a file belongs to; raises UnknownLayout."""
    with np.load(path, allow_pickle=False) as archive:
        return _method(_meta(archive), path)


def read_cases(path: Path) -> list[Case]:
    """All cases of a file; raises UnknownLayout."""
    with np.load(path, allow_pickle=False) as archive:
        meta = _meta(archive)
        read = _of_maps if isinstance(meta["cases"], list) else _of_prefixes
        found = read(archive, meta["cases"], _method(meta, path))
        return [replace(case, path=path) for case in found]


def _meta(archive: Any) -> dict[str, Any]:
    named = next((name for name in ("meta", "meta_json") if name in archive.files), None)
    if named is None:
        raise UnknownLayout("has neither an array `meta` nor `meta_json`")
    meta = json.loads(str(archive[named]))
    if not isinstance(meta, dict) or not isinstance(meta.get("cases"), list | dict):
        raise UnknownLayout(f"has no cases in its `{named}`")
    return meta


def _of_maps(archive: Any, cases: list[dict[str, Any]], method: str) -> Iterator[Case]:
    """Cases that map the names of their inputs and outputs to arrays, which several cases may share."""
    for case in cases:
        inputs, outputs = _tensors(archive, case["inputs"]), _tensors(archive, case["outputs"])
        yield Case(method, case["case"], case["hyper"], _wide(inputs), outputs)


def _of_prefixes(archive: Any, cases: dict[str, dict[str, Any]], method: str) -> Iterator[Case]:
    """Cases whose arrays are called `<case>.<array>`; nothing tells inputs from outputs, so both are all of them."""
    for name, case in cases.items():
        arrays = _tensors(archive, {array: {"key": f"{name}.{array}"} for array in case["arrays"]})
        yield Case(method, name, case["hp"], _wide(arrays), arrays)


def _method(meta: dict[str, Any], path: Path) -> str:
    return str(meta.get("method", path.stem))


def _tensors(archive: Any, entries: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(archive[entry["key"]]) for name, entry in entries.items()}


def _wide(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
