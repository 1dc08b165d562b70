"""Golden vectors: reads files of them, and holds this package against them (`python -m tests.golden FOLDER`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
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


class UnknownLayout(ValueError):
    """The file is no archive of cases as the README of this folder describes them."""


def read_method(path: Path) -> str:
    """Name of the method that a file belongs to; raises UnknownLayout."""
    with np.load(path, allow_pickle=False) as archive:
        return _method(_meta(archive), path)


def read_cases(path: Path) -> list[Case]:
    """All cases of a file; raises UnknownLayout."""
    with np.load(path, allow_pickle=False) as archive:
        meta = _meta(archive)
        return [
            Case(
                _method(meta, path),
                case["case"],
                case["hyper"],
                {name: _at_least_float64(tensor) for name, tensor in _tensors(archive, case["inputs"]).items()},
                _tensors(archive, case["outputs"]),
            )
            for case in meta["cases"]
        ]


def _meta(archive: Any) -> dict[str, Any]:
    if "meta" not in archive.files:
        raise UnknownLayout("has no array `meta`")
    meta = json.loads(str(archive["meta"]))
    if not isinstance(meta, dict) or not isinstance(meta.get("cases"), list):
        raise UnknownLayout("has no list of cases in its `meta`")
    return meta


def _method(meta: dict[str, Any], path: Path) -> str:
    return str(meta.get("method", path.stem))


def _tensors(archive: Any, entries: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(archive[entry["key"]]) for name, entry in entries.items()}


def _at_least_float64(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
