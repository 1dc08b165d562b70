"""Figures of a last layer with a codebook: its size, and what its student can't learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from worker.losses.codebook import code_mass, log_counts
from worker.students.heads.vq_logits import CodebookHead
from worker.students.model import Model
from worker.tasks.base import Figures, ReportInputs

MOST_ROWS = 4096
TeacherLogits = Callable[[Model], Iterator[Tensor]]
"""Logits (n, V), floating, of a teacher for some held-out samples, or tokens, after the other."""


def codebook_figures(inputs: ReportInputs, logits: TeacherLogits) -> Figures:
    """Its `codes`, those in use, and the `bytes` of the layer in 32 bits beside those of a full one.

    By the `logits` of the first teacher with the same inputs, for up to 4,096 held-out samples or tokens:
    `entropy_within_codes`, the mean entropy of the outputs within their code, and `least_kl`, below which the student's
    mean KL can't fall, both in nats. Empty if the student's last layer is no codebook."""
    layer, student = inputs.student.codebook, inputs.student
    if layer is None:
        return {}
    number, width = layer.weight.shape
    sizes = {"bytes": 4 * number * width + 4 * len(layer.codes), "full_bytes": 4 * len(layer.codes) * width}
    found: Figures = {"codes": number, "codes_in_use": int(layer.codes.bincount().count_nonzero()), **sizes}
    teacher = next((each for each in inputs.teachers.values() if each.input_key == student.input_key), None)
    return found if teacher is None else found | _of_teacher(logits(teacher), layer)


@torch.inference_mode()
def _of_teacher(logits: Iterator[Tensor], layer: CodebookHead) -> Figures:
    found: list[Tensor] = []
    for rows in logits:
        found.append(_of_rows(rows, layer.codes.cpu(), len(layer.weight)))
        if sum(map(len, found)) >= MOST_ROWS:
            break
    within, least = torch.cat(found)[:MOST_ROWS].mean(0).tolist()
    return {"entropy_within_codes": within, "least_kl": least}


def _of_rows(logits: Tensor, codes: Tensor, number: int) -> Tensor:
    """Both figures (n, 2) float64 of a teacher's logits (n, V)."""
    log_p = logits.double().cpu().log_softmax(-1)[:, : len(codes)]
    mass = code_mass(log_p, codes[: log_p.shape[1]], number)
    return torch.stack((mass.within, mass.least_kl(log_counts(codes, number))), -1)
