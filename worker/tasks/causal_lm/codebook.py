"""Figures of a last layer with a codebook: its size, and what its student can't learn."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.losses.codebook import code_mass, log_counts
from worker.outputs import HiddenStates
from worker.students.model import Model
from worker.tasks.base import Figures, ReportInputs
from worker.tasks.causal_lm.evaluator import hidden_states_of, labels_of
from worker.tensors import IGNORED

MOST_TOKENS, AT_ONCE = 4096, 64


def codebook_figures(inputs: ReportInputs) -> Figures:
    """`codebook`: its `codes`, those in use, and the `bytes` of the layer in 32 bits beside those of a full one.

    By the first teacher with the same tokens, on up to 4,096 held-out tokens: `entropy_within_codes`, the mean entropy
    of the tokens within their code, and `least_kl`, below which the student's mean KL can't fall, both in nats. Empty
    if the student's last layer is no codebook."""
    layer = inputs.student.codebook
    if layer is None:
        return {}
    number, width = layer.weight.shape
    sizes = {"bytes": 4 * number * width + 4 * len(layer.codes), "full_bytes": 4 * len(layer.codes) * width}
    found: Figures = {"codes": number, "codes_in_use": int(layer.codes.bincount().count_nonzero()), **sizes}
    student = inputs.student
    teacher = next((each for each in inputs.teachers.values() if each.input_key == student.input_key), None)
    if teacher is not None:
        found |= _of_teacher(inputs, teacher, layer.codes, number)
    return {"codebook": found}


@torch.inference_mode()
def _of_teacher(inputs: ReportInputs, teacher: Model, codes: Tensor, number: int) -> Figures:
    found: list[Tensor] = []
    for part in inputs.samples.parts(1):
        tokens = part.inputs[teacher.input_key]
        states = hidden_states_of(teacher, tokens.to(next(teacher.parameters()).device))
        rows = (labels_of(part, teacher.input_key) != IGNORED).nonzero().squeeze(1)
        found += [_of_rows(states, some, codes, number) for some in torch.split(rows, AT_ONCE)]
        if sum(map(len, found)) >= MOST_TOKENS:
            break
    within, least = torch.cat(found)[:MOST_TOKENS].mean(0).tolist()
    return {"entropy_within_codes": within, "least_kl": least}


def _of_rows(states: HiddenStates, rows: Tensor, codes: Tensor, number: int) -> Tensor:
    """Both figures (n, 2) float64 at `rows` (n,) int64."""
    log_p = states.logits(rows.to(states.hidden.device)).double().cpu().log_softmax(-1)[:, : len(codes)]
    shared = codes.cpu()[: log_p.shape[1]]
    mass = code_mass(log_p, shared, number)
    return torch.stack((mass.within, mass.least_kl(log_counts(codes.cpu(), number))), -1)
