"""The texts of labels, which a dual encoder encodes beside those of the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from app.recipe.data.sources import Data
from app.recipe.students.architectures import DualEncoder, Student
from worker.data.formats import read_samples
from worker.data.formats.candidate_lists import CandidateColumns
from worker.data.formats.columns import TextSamples
from worker.data.formats.faults import data_memory, data_subject, invalid, shown
from worker.errors import UserError
from worker.limits import reading

LABEL_TEXTS = "data.label_texts"
MOST = 5
"""Most labels in a warning."""


def read_label_texts(path: Path, data: Data) -> dict[str, str]:
    """The texts of labels by their names, from the file of `data.label_texts`. Raises UserError (`invalid_data`)."""
    with reading(data_subject(LABEL_TEXTS), data_memory(path)):
        inputs = read_samples(
            path, data, CandidateColumns("multi-label-classification", texts=True), LABEL_TEXTS
        ).inputs
    assert isinstance(inputs, TextSamples)  # by its reader
    assert inputs.second is not None  # of two columns
    found: dict[str, str] = {}
    for row, (name, text) in enumerate(zip(inputs.first, inputs.second, strict=True)):
        if not text.strip():
            raise invalid(f"{LABEL_TEXTS} has an empty text in row {row}, for label {shown(name)}", LABEL_TEXTS)
        if found.setdefault(name, text) != text:
            raise invalid(f"{LABEL_TEXTS} has another text for label {shown(name)} in row {row}", LABEL_TEXTS)
    return found


def label_texts(student: Student, names: Sequence[str] | None, given: Mapping[str, str] | None = None) -> list[str]:
    """The text of each class, whose `names` are none if there are only numbers; empty for a student that encodes none.
    `given` are those of a file; none: there is no file, and a name is the text.

    Raises UserError (`invalid_job`) for labels without names, for the text of a label that there is not, and
    (`invalid_data`) for a label that the file lacks.
    """
    if not isinstance(student, DualEncoder):
        return []
    if names is None:
        found = f"is missing, the labels have numbers alone, and a {student.architecture} encodes their names"
        raise UserError("invalid_job", f"data.class_order {found}; accepted: their names", "data.class_order")
    if wrong := sorted(student.label_texts.keys() - set(names)):
        found = f"names {shown(wrong[0])}, which is no label of data.train"
        raise UserError("invalid_job", f"student.label_texts {found}; accepted: its labels", "student.label_texts")
    texts = {**({name: name for name in names} if given is None else given), **student.label_texts}
    if (lacking := next((name for name in names if name not in texts), None)) is not None:
        found = f"{LABEL_TEXTS} has no text for label {shown(lacking)}"
        raise invalid(f"{found}; accepted: one for each label of data.train", LABEL_TEXTS)
    return [texts[name] for name in names]


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
