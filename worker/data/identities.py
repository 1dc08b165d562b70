"""Labels of images that are compared with each other: classes that need not be the same in all files.

A class is known by its name, or its number as text, so that one of the evaluation file may be trained on or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.data.batches import Batch
from worker.data.formats.columns import Samples
from worker.data.formats.faults import invalid
from worker.data.image_pairs import is_paired, pair_figures, require_both
from worker.data.randomness import generator
from worker.data.task_data import Halves, Targets

FEWEST = 2
"""Classes that training, and evaluation, needs at least."""
LISTED = 1000
"""With more classes than this, the report has their number alone."""


def identities(samples: Mapping[str, Samples]) -> Targets:
    """Numbers (N,) int64 of the classes of all files, in the order of their first file, and their names. Raises
    UserError (`invalid_data`) for a negative number."""
    names: dict[str, int] = {}
    found = {param: _numbered(one, names, param) for param, one in samples.items()}
    return Targets(found, names=list(names))


def _numbered(samples: Samples, names: dict[str, int], param: str) -> Tensor:
    """Numbers (N,) int64 of the labels in `names`, to which new ones are added."""
    if isinstance(samples.labels, list):
        distinct, places = np.unique(np.array(samples.labels, dtype=object), return_inverse=True)
        listed = [str(name) for name in distinct]
    else:
        values = np.asarray(samples.labels)
        if (values < 0).any():
            index = int((values < 0).argmax())
            raise invalid(f"label {values[index]} at index {index} of {param}; accepted: numbers from 0", param)
        distinct, places = np.unique(values, return_inverse=True)
        own = samples.class_names
        listed = [own[number] if own is not None else str(number) for number in distinct.tolist()]
    table = np.array([names.setdefault(name, len(names)) for name in listed], np.int64)
    return torch.from_numpy(table[places.reshape(-1)])


def hold_out_classes(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of `labels` (N,) int64 into (kept, held out), both ascending int64: all samples of `count`
    classes are held out."""
    classes: Tensor = torch.unique(labels)
    chosen = classes[torch.randperm(len(classes), generator=generator(seed, "unseen-classes"))[:count]]
    held = torch.isin(labels, chosen)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def unseen_count(classes: int, wanted: int | None, share: float) -> int:
    """How many of `classes` are held out: as `wanted`, else this share of them. Raises UserError (`invalid_data`) if
    there are too few for training and evaluation."""
    if classes < 2 * FEWEST:
        found = f"data.train has {classes} classes, of which some are held out for evaluation"
        raise invalid(f"{found}; accepted: {2 * FEWEST} or more, or data.eval", "data.train")
    count = max(round(classes * share), FEWEST) if wanted is None else wanted
    if count > classes - FEWEST:
        if wanted is None:
            return classes - FEWEST
        found = f"data.unseen_classes is {wanted} of {classes}, and training needs {FEWEST}"
        raise invalid(f"{found}; accepted: {FEWEST} to {classes - FEWEST}", "data.unseen_classes")
    return count


def renumbered(train: Batch, evaluation: Batch, targets: Targets) -> Halves:
    """Both halves with classes numbered from 0: first those that are trained on, then the others. Raises UserError
    (`invalid_data`) for too few classes, or without two images of a class to compare."""
    trained: Tensor = torch.unique(train.targets)
    evaluated: Tensor = torch.unique(evaluation.targets)
    _require_two(trained, "data.train")
    param = "data.eval" if "data.eval" in targets.by_file else "data.train"
    _require_two(evaluated, param)
    _require_queries(evaluation, param)
    unseen = evaluated[~torch.isin(evaluated, trained)]
    order = torch.cat([trained, unseen])
    places = torch.full((int(order.max()) + 1,), -1)
    places[order] = torch.arange(len(order))
    return Halves(
        Batch(train.inputs, places[train.targets], train.index, train.epoch),
        Batch(evaluation.inputs, places[evaluation.targets], evaluation.index, evaluation.epoch),
        {"classes": _figures(trained, evaluated, unseen, targets)},
    )


def with_pairs(train: Batch, evaluation: Batch, targets: Targets) -> Halves:
    """Both halves, of which one at least has pairs; classes of the other one are numbered from 0. Raises UserError
    (`invalid_data`) for too few classes, or for pairs with one label alone."""
    figures: dict[str, Any] = {}
    param = "data.eval" if "data.eval" in targets.by_file else "data.train"
    settled: dict[str, Batch] = {}
    for name, half, file in (("trained", train, "data.train"), ("evaluated", evaluation, param)):
        if is_paired(half.targets):
            require_both(half, file)
            settled[name], figures[f"{name}_pairs"] = half, pair_figures(half)
        else:
            settled[name], figures[f"{name}_classes"] = _alone(half, file)
    if not is_paired(evaluation.targets):
        _require_queries(evaluation, param)
    return Halves(settled["trained"], settled["evaluated"], {"pairs": figures})


def _alone(half: Batch, param: str) -> tuple[Batch, int]:
    """A half with its classes numbered from 0, and their number."""
    distinct: tuple[Tensor, Tensor] = torch.unique(half.targets, return_inverse=True)
    classes, places = distinct
    _require_two(classes, param)
    return replace(half, targets=places), len(classes)


def _require_queries(evaluation: Batch, param: str) -> None:
    if int(evaluation.targets.bincount().max()) < 2:
        raise invalid("no class to evaluate on has two images; accepted: two of some class", param)


def _require_two(classes: Tensor, param: str) -> None:
    if len(classes) < FEWEST:
        raise invalid(f"the samples of {param} are of one class; accepted: {FEWEST} classes or more", param)


def _figures(trained: Tensor, evaluated: Tensor, unseen: Tensor, targets: Targets) -> dict[str, object]:
    names = targets.names or ()
    found: dict[str, object] = {"trained": len(trained), "evaluated": len(evaluated), "unseen": len(unseen)}
    if len(names) <= LISTED:
        found["trained_names"] = [names[number] for number in trained.tolist()]
        found["evaluated_names"] = [names[number] for number in evaluated.tolist()]
    return found
