"""AdamP and SGDP one tensor at a time, as in the paper (2006.08217): the reference for the fast ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


def adamp(weight: Tensor, gradient: Tensor, state: State, **settings: Any) -> None:
    """One step, in place; `state` begins empty."""
    step = state["step"] = state.get("step", 0) + 1
    beta1, beta2 = settings["betas"]
    average = state["average"] = beta1 * state.get("average", 0.0) + (1 - beta1) * gradient
    square = state["square"] = beta2 * state.get("square", 0.0) + (1 - beta2) * gradient**2
    denominator = square.sqrt() / math.sqrt(1 - beta2**step) + settings["eps"]
    momentum = beta1 * average + (1 - beta1) * gradient if settings["nesterov"] else average
    update, ratio = project(weight, gradient, momentum / denominator, settings)
    weight.mul_(1 - settings["lr"] * settings["weight_decay"] * ratio)
    weight.sub_(settings["lr"] / (1 - beta1**step) * update)


def sgdp(weight: Tensor, gradient: Tensor, state: State, **settings: Any) -> None:
    """One step, in place; `state` begins empty."""
    momentum = settings["momentum"]
    buffer = state["buffer"] = momentum * state.get("buffer", 0.0) + (1 - settings["dampening"]) * gradient
    raw = gradient + momentum * buffer if settings["nesterov"] else buffer
    update, ratio = project(weight, gradient, raw, settings)
    if settings["project_buffer"] and not settings["nesterov"]:
        state["buffer"] = update
    weight.mul_(1 - settings["lr"] * settings["weight_decay"] * ratio / (1 - momentum))
    weight.sub_(settings["lr"] * update)


def project(weight: Tensor, gradient: Tensor, update: Tensor, settings: dict[str, Any]) -> tuple[Tensor, float]:
    """The update without its radial part, where the test for scale invariance succeeds, and the factor of the decay."""
    if weight.ndim < 2:
        return update, 1.0
    for rows in (len(weight), 1):
        w, g, u = (tensor.reshape(rows, -1) for tensor in (weight, gradient, update))
        cosine = torch.nn.functional.cosine_similarity(g, w, dim=1, eps=settings["eps"]).abs().max()
        if cosine < settings["delta"] / math.sqrt(w.shape[1]):
            direction = w / (w.norm(dim=1, keepdim=True) + settings["eps"])
            u = u - direction * (direction * u).sum(1, keepdim=True)
            return u.view_as(update), settings["wd_ratio"]
    return update, 1.0
