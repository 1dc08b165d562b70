"""Reads the golden vectors of this folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One run of the authors' code; floats are float64."""

    name: str
    hyper: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def cases(name: str) -> list[Case]:
    """All cases of `<name>.npz`."""
    with np.load(Path(__file__).parent / f"{name}.npz", allow_pickle=False) as archive:
        meta = json.loads(str(archive["meta"]))
        return [
            Case(case["case"], case["hyper"], _tensors(archive, case["inputs"]), _tensors(archive, case["outputs"]))
            for case in meta["cases"]
        ]


def _tensors(archive: Any, entries: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    tensors = {name: torch.from_numpy(archive[entry["key"]]) for name, entry in entries.items()}
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
