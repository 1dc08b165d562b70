"""The texts of labels, which a dual encoder encodes beside those of the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from app.recipe.students.architectures import DualEncoder, Student
from worker.data.formats.faults import shown
from worker.errors import UserError

MOST = 5
"""Most labels in a warning."""


def label_texts(student: Student, names: Sequence[str] | None) -> list[str]:
    """The text of each class, whose `names` are none if there are only numbers; empty for a student that encodes none.

    Raises UserError (`invalid_job`) for labels without names, and for the text of a label that there is not.
    """
    if not isinstance(student, DualEncoder):
        return []
    if names is None:
        found = f"is missing, the labels have numbers alone, and a {student.architecture} encodes their names"
        raise UserError("invalid_job", f"data.class_order {found}; accepted: their names", "data.class_order")
    if wrong := sorted(student.label_texts.keys() - set(names)):
        found = f"names {shown(wrong[0])}, which is no label of data.train"
        raise UserError("invalid_job", f"student.label_texts {found}; accepted: its labels", "student.label_texts")
    return [student.label_texts.get(name, name) for name in names]


def equal_labels(tokens: Tensor, names: Sequence[str]) -> Iterator[str]:
    """A warning about the labels with these `names` whose token ids (C, T) int64 are those of another label."""
    first: dict[bytes, str] = {}
    alike = [
        f"{shown(name)} as {shown(other)}"
        for name, row in zip(names, tokens.numpy(), strict=True)
        if (other := first.setdefault(row.tobytes(), name)) != name
    ]
    if alike:
        more = f" and {len(alike) - MOST} more" if len(alike) > MOST else ""
        yield f"labels have equal tokens, and therefore equal logits: {', '.join(alike[:MOST])}{more}"
