"""Adversarial distillation by two teachers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.methods.adversarial import CLEAN, ROBUST, SIDES, balanced_temperatures, balanced_weights, teacher_rows

THEIRS = {ROBUST: "adv", CLEAN: "nat"}


def mtard(case: Case) -> Iterator[Comparison]:
    """Divergences, weights, temperatures and gradients over the steps of a trajectory."""
    hyper = case.hyper
    temperatures = dict.fromkeys(SIDES, 1.0)
    weights = dict(zip(SIDES, hyper["weights_init"], strict=True))
    first: dict[str, float] = {}
    for step in range(len(case.outputs["loss"])):
        logits = {side: case.inputs[f"student_{THEIRS[side]}"][step].clone().requires_grad_() for side in SIDES}
        rows = {
            side: teacher_rows(
                logits[side], case.inputs[f"teacher_{THEIRS[side]}"][step], temperatures[side], "reference"
            )
            for side in SIDES
        }
        means = {side: each.divergence.mean() for side, each in rows.items()}
        divergences = {side: float(mean.detach()) for side, mean in means.items()}
        if hyper["temp_learn_rate"] is not None:
            entropies = {side: float(each.entropy.mean()) for side, each in rows.items()}
            temperatures = balanced_temperatures(temperatures, entropies, hyper["temp_learn_rate"])
        first = first or divergences
        weights = balanced_weights(weights, divergences, first, hyper["weight_learn_rate"])
        loss = sum((weights[side] * means[side] for side in SIDES), torch.zeros(()))
        gradients = torch.autograd.grad(loss, list(logits.values()))
        found = {"loss": loss.detach()}
        for side, gradient in zip(SIDES, gradients, strict=True):
            found |= {f"kl_{THEIRS[side]}": means[side].detach(), f"grad_student_{THEIRS[side]}": gradient}
            found |= {f"weight_{THEIRS[side]}": torch.tensor(weights[side], dtype=torch.float64)}
            found |= {f"temp_{THEIRS[side]}_after": torch.tensor(temperatures[side], dtype=torch.float64)}
        for output, value in found.items():
            if output in case.outputs:
                expected = case.outputs[output][step]
                yield Comparison("adversarial", f"{output}, step {step}", value, expected, output.startswith("grad"))
