"""Warnings about unusual labels, each in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from app.recipe.data.classes import shown_names
from app.recipe.students.model import ModelConfig
from worker.data.class_names import odd_names


def class_notes(train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
    """Warnings about classes (N,) int64 of the training and evaluation samples."""
    count = model.classes or 0
    names = model.class_names or [str(number) for number in range(count)]
    counts = [torch.bincount(targets, minlength=count).tolist() for targets in (train, evaluation)]
    return [*_class_notes(counts[0], counts[1], names), *odd_names(model.class_names or [])]


def label_notes(train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
    """Warnings about labels (N, C) of 0 and 1, or lists of them (N, P) int32, of the training and evaluation
    samples."""
    names = model.class_names or [str(number) for number in range(model.classes or 0)]
    if train.dtype == torch.int32:
        counts = [torch.bincount(each[each >= 0], minlength=len(names)).tolist() for each in (train, evaluation)]
        most = (train >= 0).sum(1).max()
    else:
        counts, most = [targets.sum(0).long().tolist() for targets in (train, evaluation)], train.sum(1).max()
    alone = [f"no training sample has more than one label{_joined(names)}"] if most <= 1 else []
    return [*_label_notes(counts[0], counts[1], names, len(train)), *alone, *odd_names(model.class_names or [])]


def kept_back_notes(train: Tensor, kept_back: Tensor, model: ModelConfig) -> list[str]:
    """Warnings about classes, int64 of any shape, of the samples that the training method keeps back."""
    count = model.classes or 0
    names = model.class_names or [str(number) for number in range(count)]
    learned, kept = (torch.bincount(each[each >= 0].flatten(), minlength=count).tolist() for each in (train, kept_back))
    single = [name for name, one, other in zip(names, learned, kept, strict=True) if one + other == 1]
    if not single:
        return []
    found = "classes with a single sample, which is either trained on or kept back for the method"
    return [f"{found}: {shown_names(single)}"]


def _joined(names: Sequence[str]) -> str:
    """Names that may be several names in one."""
    joined = [name for name in names if any(mark in name for mark in ",;|")]
    return f", and some may be several: {shown_names(joined)} (data.label_separator separates them)" if joined else ""


def number_notes(train: Tensor) -> list[str]:
    """Warnings about numeric targets (N, T), floating, of the training samples."""
    return list(_number_notes(train))


def _class_notes(train: Sequence[int], evaluation: Sequence[int], names: Sequence[str]) -> Iterator[str]:
    yield from _missing_notes(train, names)
    if sum(count > 0 for count in train) == 1:
        only = next(name for name, count in zip(names, train, strict=True) if count)
        yield f"all training samples are of class {only!r}: there is nothing to distinguish"
    if not train[0] and not evaluation[0] and names[0] == "0" and sum(train) > 0:
        first = next(number for number, count in enumerate(train) if count)
        yield f"labels begin at {first}, classes are counted from 0: class 0 has no sample in data.train and data.eval"
    yield from _rare_notes(train, evaluation, names)


def _label_notes(train: Sequence[int], evaluation: Sequence[int], names: Sequence[str], count: int) -> Iterator[str]:
    yield from _missing_notes(train, names)
    if always := [name for name, having in zip(names, train, strict=True) if having == count]:
        yield f"classes that all training samples have, so that there is nothing to distinguish: {shown_names(always)}"
    yield from _rare_notes(train, evaluation, names)


def _missing_notes(train: Sequence[int], names: Sequence[str]) -> Iterator[str]:
    missing = [name for name, count in zip(names, train, strict=True) if not count]
    if missing:
        present = len(names) - len(missing)
        yield f"only {present} of {len(names)} classes have a training sample; without one: {shown_names(missing)}"


def _rare_notes(train: Sequence[int], evaluation: Sequence[int], names: Sequence[str]) -> Iterator[str]:
    both = list(zip(names, train, evaluation, strict=True))
    if unseen := [name for name, learned, evaluated in both if evaluated and not learned]:
        yield f"classes that are evaluated and have no training sample: {shown_names(unseen)}"
    if single := [name for name, count in zip(names, train, strict=True) if count == 1]:
        yield f"classes with a single training sample: {shown_names(single)}"


def _number_notes(train: Tensor) -> Iterator[str]:
    if len(train) > 1 and train.ndim == 2:
        constant = (train == train[:1]).all(0).nonzero().flatten().tolist()
        if constant:
            numbers = ", ".join(map(str, constant[:20])) + (", ..." if len(constant) > 20 else "")
            yield f"target columns that are constant in all training samples (counted from 0): {numbers}"
