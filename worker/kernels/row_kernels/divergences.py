"""Formulas of the divergences, column by column, and the starting sums of their gradients."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

import triton
import triton.language as tl

from worker.kernels.row_kernels.logits import FLOOR, NONE


@triton.jit
def _softplus(x):
    """log(1 + exp(x))."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _mixture(gap, share):
    """log(share p + (1 - share) q) - log q, where `gap` is log p - log q; `share` is between 0 and 1."""
    larger = tl.where(gap > 0.0, share, 1.0 - share)
    return tl.maximum(gap, 0.0) + tl.log(larger + (1.0 - larger) * tl.exp(-tl.abs(gap)))


@triton.jit
def _forward(q, p, gap, shared, share, KIND: tl.constexpr):
    """Value and slope of forward KL, to a mixture for `skew-kl`."""
    value = p * gap
    slope = -p
    if KIND == "skew-kl":
        mixed = _mixture(gap, share)
        value = p * (gap - mixed)
        slope = (share - 1.0) * p * tl.exp(-mixed)
    return value, slope


@triton.jit
def _reverse(q, p, gap, shared, share, KIND: tl.constexpr):
    """Value and slope of reverse KL, to a mixture for `skew-reverse-kl`; the slope is without a multiple of q.

    Such a multiple does not change the gradient, and is left out so that the gradient of equal logits is exactly 0.
    """
    value = -q * gap
    slope = tl.where(shared, value, -q)
    if KIND == "skew-reverse-kl":
        mixed = _mixture(gap, 1.0 - share)
        value = -q * mixed
        rest = (1.0 - share) * (tl.exp(gap - mixed) - 1.0)
        slope = tl.where(shared, value + q * rest, (share - 1.0) * q)
    return value, slope


@triton.jit
def _value_and_slope(q, p, log_q, log_p, shared, share, ahead, behind, KIND: tl.constexpr):
    """Summand of the divergence for each column (R, B), and the derivative of the sum with respect to log q.

    `q` is the student's softmax; `p`, `log_q` and `log_p` are 0 if a column is not shared. `ahead` and `behind` (R, 1)
    are the weights of forward and reverse KL in `bd-kd`.
    """
    gap = log_p - log_q
    if KIND == "jsd":
        common = tl.where(shared, q, 0.0)
        mixed = _mixture(gap, share)
        slope = (share - 1.0) * common * mixed
        value = share * p * (gap - mixed) + slope
    elif KIND == "tvd":
        common = tl.where(shared, q, 0.0)
        value = 0.5 * tl.abs(p - common)
        slope = 0.5 * common * ((common > p).to(tl.float32) - (common < p).to(tl.float32))
    elif KIND == "nkd":
        value = -p * log_q
        slope = -p
    elif KIND == "bd-kd":
        forward, forward_slope = _forward(q, p, gap, shared, share, KIND)
        reverse, reverse_slope = _reverse(q, p, gap, shared, share, KIND)
        value = ahead * forward + behind * reverse
        slope = ahead * forward_slope + behind * reverse_slope
    elif KIND == "reverse-kl" or KIND == "skew-reverse-kl":
        value, slope = _reverse(q, p, gap, shared, share, KIND)
    else:
        value, slope = _forward(q, p, gap, shared, share, KIND)
    return value, slope


@triton.jit
def _distributions(x, y, high_q, low_q, high_p, low_p):
    """q, p, log q, log p and which columns are shared, from logits (R, B) and the parts of their log-sums."""
    log_q = (x - high_q) - low_q
    log_p = (y - high_p) - low_p
    shared = (x > NONE) & (y > NONE)
    q = tl.exp(log_q)
    p = tl.where(shared, tl.exp(log_p), 0.0)
    return q, p, tl.where(shared, log_q, 0.0), tl.where(shared, log_p, 0.0), shared


@triton.jit
def summands(x, y, high_q, low_q, high_p, low_p, share, KIND: tl.constexpr):
    """Three numbers of each column (R, B), whose sums the last pass needs.

    `logit-mse`: the gap, whether it is shared, 0. `bd-kd`: p, slope of reverse KL, share in the gap of the entropies
    H(q) - H(p). Else: slope, q if it is shared, 0.
    """
    q, p, log_q, log_p, shared = _distributions(x, y, high_q, low_q, high_p, low_p)
    common = tl.where(shared, q, 0.0)
    nothing = tl.zeros_like(x)
    if KIND == "logit-mse":
        first, second, third = tl.where(shared, x - y, 0.0), shared.to(tl.float32), nothing
    elif KIND == "bd-kd":
        _, second = _reverse(q, p, log_p - log_q, shared, share, KIND)
        first, third = p, p * log_p - common * log_q
    else:
        _, first = _value_and_slope(q, p, log_q, log_p, shared, share, 1.0, 1.0, KIND)
        second, third = common, nothing
    return first, second, third


@triton.jit
def binary(x_target, y_target, high_q, low_q, high_p, low_p, kept_q, kept_p):
    """Target against rest (DKD): its value, and the factors of its gradient (R, 1).

    The log-sums are of the other classes, of which a share `kept` is not masked by the other side.
    """
    ahead_q = tl.maximum((x_target - high_q) - low_q, FLOOR)
    ahead_p = tl.maximum((y_target - high_p) - low_p, FLOOR)
    shared = (x_target > NONE) & (y_target > NONE)
    p_target = tl.where(shared, tl.exp(-_softplus(-ahead_p)), 0.0)
    log_rest_q = -_softplus(ahead_q) + tl.log(tl.maximum(kept_q, 1e-37))
    log_rest_p = -_softplus(ahead_p) + tl.log(tl.maximum(kept_p, 1e-37))
    p_rest = tl.exp(log_rest_p)
    value = p_target * (_softplus(-ahead_q) - _softplus(-ahead_p)) + p_rest * (log_rest_p - log_rest_q)
    both = p_target + p_rest
    at_target = tl.exp(-_softplus(-ahead_q)) * both - p_target
    return value, at_target, tl.exp(-_softplus(ahead_q)) * both, p_rest / tl.maximum(kept_q, 1e-37)


@triton.jit
def starting_sums(first, second, third, masked, delta, KIND: tl.constexpr, CENTERED: tl.constexpr):
    """Starting values of the last pass (R, 1): sum of the slopes, shared part of q, `ahead`, `behind`.

    For `logit-mse`: the mean gap and the count of columns. If nothing is masked, probabilities sum to 1 exactly.
    """
    ahead = tl.zeros_like(first) + 1.0
    behind = ahead
    if KIND == "logit-mse":
        second = tl.maximum(second, 1.0)
        first = first / second if CENTERED else first * 0.0
    elif KIND == "bd-kd":
        ahead = tl.where(third < 0.0, delta, 1.0)
        behind = tl.where(third < 0.0, 1.0, delta)
        first = behind * second - ahead * tl.where(masked == 0.0, 1.0, first)
    elif KIND == "forward-kl" or KIND == "nkd" or KIND == "dkd":
        first = tl.where(masked == 0.0, -1.0, first)
        second = tl.where(masked == 0.0, 1.0, second)
    return first, second, ahead, behind


@triton.jit
def soft_column(
    x, y, high_q, low_q, high_p, low_p, share, first, second, ahead, behind, temperature,
    KIND: tl.constexpr,
):  # fmt: skip
    """Value and gradient (R, B) with respect to the logits at temperature 1, without factors."""
    q, p, log_q, log_p, shared = _distributions(x, y, high_q, low_q, high_p, low_p)
    if KIND == "logit-mse":
        gap = tl.where(shared, (x - y) - first, 0.0)
        value = 0.5 * gap * gap / second
        gradient = gap / second
    else:
        value, slope = _value_and_slope(q, p, log_q, log_p, shared, share, ahead, behind, KIND)
        gradient = (slope - q * first) / temperature
    return value, gradient, q, shared
