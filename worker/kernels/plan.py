"""Maps divergences of the contract to the kernels' kinds, which are fewer: ends of ranges are other kinds."""

from __future__ import annotations

from typing import NamedTuple

from worker.kernels.spec import RowSpec


class Plan(NamedTuple):
    """A divergence in the form of the kernel's arguments."""

    kind: str
    share: float = 0.0
    factor: float = 1.0
    target_factor: float = 0.0


def plan(spec: RowSpec) -> Plan:
    """The kernel's kind and factors; ends of ranges become the kinds that they are by definition."""
    divergence = spec.divergence
    if divergence is None or spec.divergence_weight == 0.0:
        return Plan("")
    squared = divergence.temperature**2
    match divergence.kind:
        case "jsd" if divergence.beta in (0.0, 1.0):
            return Plan("reverse-kl" if divergence.beta else "forward-kl")
        case "jsd":
            return Plan("jsd", divergence.beta)
        case "skew-kl" | "skew-reverse-kl" if divergence.skew == 0.0:
            return Plan("forward-kl" if divergence.kind == "skew-kl" else "reverse-kl")
        case "skew-kl" | "skew-reverse-kl":
            return Plan(divergence.kind, divergence.skew)
        case "nkd":
            return Plan("nkd", factor=divergence.gamma * squared)
        case "dkd":
            return Plan("dkd", factor=divergence.beta * squared, target_factor=divergence.alpha * squared)
        case "forward-kl" | "bd-kd":
            return Plan(divergence.kind, factor=squared)
    return Plan(divergence.kind)
