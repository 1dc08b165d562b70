"""Plain PyTorch forms of the row losses, which define the kernels' results; autograd differentiates them.

All are computed in log space, mixtures too, so that probabilities that underflow on both sides and logits of ±1e4 cause
no error. Letters: p is the teacher's softmax at the temperature T, q the student's.

Shapes: B rows, C columns; logits (B, C) float32 or float64, labels (B,) int64, losses (B,) in the logits' dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.kernels.log_probs import FLOOR, entropy, kl, log_probs, log_probs_beside, mixture
from worker.kernels.spec import Divergence, DivergenceKind


def divergence(spec: Divergence, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Divergence of each row (B,) between logits (B, C) of student and teacher; `nkd` and `dkd` use labels (B,)
    int64."""
    match spec.kind:
        case "nkd":
            target, others = nkd_parts(student, teacher, labels, spec.temperature)
            return target + spec.gamma * spec.temperature**2 * others
        case "dkd":
            target, others = dkd_parts(student, teacher, labels, spec.temperature)
            return spec.temperature**2 * (spec.alpha * target + spec.beta * others)
        case "logit-mse":
            return logit_mse(student, teacher, spec.centered)
    log_q, log_p, _ = log_probs(student / spec.temperature, teacher / spec.temperature)
    return OF_LOG_PROBS[spec.kind](spec, log_q, log_p)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-sum_c y_c log q_c of each row (B,), where y is the label mixed with a uniform distribution by `smoothing`.

    `labels` are classes (B,) int64 or probabilities (B, C). Masked columns (logits of -inf) are not in the uniform
    distribution; the loss of a masked label is infinite.
    """
    logs, soft = F.log_softmax(logits, dim=-1), labels.is_floating_point()
    if not soft:
        hard = logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        if smoothing == 0.0:
            return -hard
    masked = logits.isneginf()
    finite = logs.masked_fill(masked, 0.0)
    if soft:
        hard = (labels.to(logits.dtype) * finite).sum(-1)
    even = finite.sum(-1) / (~masked).sum(-1)
    return -(1.0 - smoothing) * hard - smoothing * even


def forward_kl(spec: Divergence, log_q: Tensor, log_p: Tensor) -> Tensor:
    """T^2 KL(p || q) of each row (B,), from log-probabilities (B, C); the factor keeps the gradient's size over T
    (Hinton et al., arXiv 1503.02531)."""
    return kl(log_p, log_q) * spec.temperature**2


def reverse_kl(spec: Divergence, log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q || p) of each row (B,), from log-probabilities (B, C)."""
    return kl(log_q, log_p)


def jsd(spec: Divergence, log_q: Tensor, log_p: Tensor) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m) of each row (B,), where m is beta p + (1 - beta) q, from
    log-probabilities (B, C) (arXiv 2306.13649).

    For beta 0 and 1, where that would be 0 for any student, it is forward and reverse KL by definition.
    """
    if spec.beta in (0.0, 1.0):
        return kl(log_q, log_p) if spec.beta else kl(log_p, log_q)
    middle = mixture(spec.beta, log_p, log_q)
    return spec.beta * kl(log_p, middle) + (1.0 - spec.beta) * kl(log_q, middle)


def skew_kl(spec: Divergence, log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || skew p + (1 - skew) q) of each row (B,), from log-probabilities (B, C) (arXiv 2402.03898)."""
    return kl(log_p, mixture(spec.skew, log_p, log_q))


def skew_reverse_kl(spec: Divergence, log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q || (1 - skew) p + skew q) of each row (B,), from log-probabilities (B, C) (arXiv 2402.03898)."""
    return kl(log_q, mixture(spec.skew, log_q, log_p))


def total_variation(spec: Divergence, log_q: Tensor, log_p: Tensor) -> Tensor:
    """1/2 sum |p - q| of each row (B,), from log-probabilities (B, C); the gradient of an equal pair is 0."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def bd_kd(spec: Divergence, log_q: Tensor, log_p: Tensor) -> Tensor:
    """T^2 (w KL(p || q) + v KL(q || p)) of each row (B,), from log-probabilities (B, C); (w, v) is (delta, 1) if q
    has less entropy than p, else (1, delta).

    The choice has no gradient. The teacher is fixed here; the paper (arXiv 2212.12965) trains it too.
    """
    overconfident = entropy(log_q.detach()) < entropy(log_p)
    forward, reverse = kl(log_p, log_q), kl(log_q, log_p)
    leading = torch.where(overconfident, forward, reverse)
    return spec.temperature**2 * (forward + reverse + (spec.delta - 1.0) * leading)


OF_LOG_PROBS: dict[DivergenceKind, Callable[[Divergence, Tensor, Tensor], Tensor]] = {
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "jsd": jsd,
    "skew-kl": skew_kl,
    "skew-reverse-kl": skew_reverse_kl,
    "tvd": total_variation,
    "bd-kd": bd_kd,
}
"""Divergences that are functions of the two softened distributions alone."""


def logit_mse(student: Tensor, teacher: Tensor, centered: bool) -> Tensor:
    """1 / (2 C) |z - v|^2 of each row (B,) of logits z and v (B, C), which may be centred (arXiv 2109.06458).

    As T grows, forward KL times T^2 tends to the centred form with an error of O(1 / T); the plain form adds half the
    squared difference of the means. Masked columns count neither in the sum nor in C.
    """
    masked = student.isneginf() | teacher.isneginf()
    classes = (~masked).sum(-1, keepdim=True).clamp(min=1)
    gap = student.masked_fill(masked, 0.0) - teacher.masked_fill(masked, 0.0)
    if centered:
        gap = (gap - gap.sum(-1, keepdim=True) / classes).masked_fill(masked, 0.0)
    return (gap.square() / (2 * classes)).sum(-1)


def nkd_parts(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Parts of normalised KD, (B,) each, from logits (B, C) and labels (B,) (arXiv 2303.13005): -p_t log q_t of the
    target at temperature 1, and the cross-entropy of the other classes among themselves, without its weight.

    The second part is no divergence, so it is not 0 if student and teacher agree; with two classes, and if both mask
    all other classes, it is exactly 0.
    """
    column = labels.unsqueeze(-1)
    p_target, log_q_target = _at(column, teacher).exp(), _at(column, student)
    target = -p_target * log_q_target.where(p_target > 0.0, 0.0)
    others = log_probs_beside(column, student / temperature, teacher / temperature)
    return target, -(others.teacher.exp() * others.student).sum(-1)


def dkd_parts(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Parts of decoupled KD, (B,) each, from logits (B, C) and labels (B,) (arXiv 2203.08679): KL of the target against
    the rest (TCKD) and of the rest among themselves (NCKD), without weights.

    The target's column is removed exactly. The authors' code subtracts 1000 from the target's logit instead, and takes
    logs of summed probabilities: the same unless those underflow. With two classes, and if both sides mask all other
    classes, NCKD is 0.
    """
    column, student, teacher = labels.unsqueeze(-1), student / temperature, teacher / temperature
    log_q, log_p, _ = log_probs(student, teacher)
    rest_q, rest_p, _ = log_probs_beside(column, student, teacher)
    return kl(_against_rest(column, log_p), _against_rest(column, log_q)), kl(rest_p, rest_q)


def _at(column: Tensor, logits: Tensor) -> Tensor:
    return F.log_softmax(logits, dim=-1).gather(-1, column).squeeze(-1)


def _against_rest(column: Tensor, logs: Tensor) -> Tensor:
    """Log-probabilities (B, 2) of the target and of all other classes together."""
    rest = logs.scatter(-1, column, FLOOR).logsumexp(-1, keepdim=True)
    return torch.cat([logs.gather(-1, column), rest], dim=-1)
