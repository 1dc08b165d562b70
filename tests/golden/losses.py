"""Values and gradients of losses, taken through the objective as in training."""

from __future__ import annotations

import re
from collections.abc import Iterator

from app.recipe.losses import (
    Akl,
    BdKd,
    CrossEntropy,
    Dist,
    Dkd,
    Jsd,
    Kd,
    KdPt,
    KdRel,
    KdSim,
    KdTopk,
    LogitMse,
    Loss,
    Nkd,
    ReverseKl,
    SkewKl,
    SkewReverseKl,
    Tvd,
)
from tests.golden import Case
from tests.golden.comparison import Comparison, compare, evaluate, rows_of
from worker.kernels.log_probs import entropy
from worker.kernels.references import nkd_parts
from worker.losses import build_term
from worker.losses.base import teacher_logits
from worker.losses.builder import LossBuilder
from worker.losses.divergences import AklTerm
from worker.losses.softened import prepare, soften

NOTHING = LossBuilder({}, {}, outputs=0)

Comparisons = Iterator[Comparison]


def kd(case: Case) -> Comparisons:
    result = evaluate([Kd(temperature=case.hyper["temperature"])], rows_of(case))
    yield from compare(case, "kd", result, "loss", "grad_logit_s")


def nkd(case: Case) -> Comparisons:
    spec, rows = Nkd(gamma=case.hyper["gamma"], temperature=case.hyper["temp"]), rows_of(case)
    yield from compare(case, "nkd", evaluate([spec], rows), "loss", "grad_logit_s")
    if "loss_target" in case.outputs:
        parts = nkd_parts(*prepare(rows, standardized=False), rows.labels, spec.temperature)
        target, others = (part.mean() for part in parts)
        weighted = spec.gamma * spec.temperature**2 * others
        yield Comparison("nkd", "loss_target", target, case.outputs["loss_target"])
        yield Comparison("nkd", "loss_nontarget", weighted, case.outputs["loss_nontarget"])


def dkd(case: Case) -> Comparisons:
    """`loss` is the authors', whose shift by 1000 is not exact, so it is looked at only where there is nothing else."""
    spec = Dkd(**{name: case.hyper[name] for name in ("alpha", "beta", "temperature")})
    value = "loss_stable" if "loss_stable" in case.outputs else "loss"
    yield from compare(case, "dkd", evaluate([spec], rows_of(case)), value, "grad_logit_s")


def dist(case: Case) -> Comparisons:
    spec = Dist(beta=case.hyper["beta"], gamma=case.hyper["gamma"], temperature=case.hyper["tau"])
    yield from compare(case, "dist", evaluate([spec], rows_of(case)), "loss", "grad_logit_s")


def bd_kd(case: Case) -> Comparisons:
    """The losses of both sides, as `online` takes them."""
    temperature, rows = case.hyper["temperature"], rows_of(case)
    terms = [CrossEntropy(), BdKd(weight=case.hyper["alpha"], delta=case.hyper["delta"], temperature=temperature)]
    yield from compare(case, "bd-kd", evaluate(terms, rows), "loss_student", "grad_logit_s")
    regulariser = ReverseKl(weight=case.hyper["alpha"] * temperature**2, temperature=temperature)
    swapped = rows._replace(student=teacher_logits(rows), teacher=rows.student)
    result = evaluate([CrossEntropy(), regulariser], swapped)
    yield from compare(case, "reverse-kl", result, "loss_teacher", "grad_logit_t")
    reverse = ReverseKl(temperature=temperature)
    student, teacher, _ = soften(rows, reverse)
    parts = {
        "forward_kl": build_term(Kd(temperature=temperature), NOTHING)(rows) / temperature**2,
        "reverse_kl": build_term(reverse, NOTHING)(rows),
        "entropy_s": entropy(student),
        "entropy_t": entropy(teacher),
    }
    for name, found in parts.items():
        if name in case.outputs:
            yield Comparison("bd-kd", name, found, case.outputs[name])


def logits_matching(case: Case) -> Comparisons:
    """At T = 1000 the expected losses are themselves off by up to 1e-10 and ours by as much; above, `kd` is refused."""
    rows = rows_of(case)
    for output in case.outputs:
        if (match := re.fullmatch(r"loss_T(\d+)", output)) and int(match[1]) <= 1000:
            result = evaluate([Kd(temperature=float(match[1]))], rows)
            yield from compare(case, "kd", result, output, f"grad_T{match[1]}")
    matching, limit = (evaluate([LogitMse(centered=centered)], rows) for centered in (False, True))
    yield from compare(case, "logit-mse", matching, "logits_matching_loss", "")
    yield from compare(case, "logit-mse", limit, "limit_loss", "limit_grad")
    yield Comparison("logit-mse", "mean_regulariser", matching[0] - limit[0], case.outputs["mean_regulariser"])


def three_levels(case: Case) -> Comparisons:
    """Each output is lam of the level and 1 - lam of cross-entropy with the labels."""
    rows, lam, hyper = rows_of(case), case.hyper["lam"], case.hyper
    temperature = hyper["temperature"]
    masses = {"siblings": hyper["rel_sibling_mass"], "others": hyper["rel_other_mass"]}
    levels: dict[str, Loss] = {
        "ls": CrossEntropy(weight=lam, label_smoothing=hyper["label_smoothing"]),
        "pt": KdPt(weight=lam, temperature=temperature),
        "sim": KdSim(weight=lam, tau=hyper["sim_tau"]),
        "topk": KdTopk(weight=lam, temperature=temperature, k=hyper["top_k"]),
        "rel": KdRel(weight=lam, parents=case.inputs["class_parent"].tolist(), **masses),
    }
    for name, term in levels.items():
        result = evaluate([CrossEntropy(weight=1.0 - lam), term], rows, case.inputs["logit_layer_weight"])
        yield from compare(case, term.kind, result, f"loss_{name}", f"grad_{name}")
    yield from _kd_level(case)


def _kd_level(case: Case) -> Comparisons:
    """The file has a cross-entropy where `kd` has a divergence: they differ by the teacher's entropy."""
    rows, lam = rows_of(case), case.hyper["lam"]
    spec = Kd(weight=lam, temperature=case.hyper["temperature"])
    loss, gradient = evaluate([CrossEntropy(weight=1.0 - lam), spec], rows)
    missing = lam * spec.temperature**2 * entropy(soften(rows, spec).teacher).mean()
    yield from compare(case, "kd", (loss + missing, gradient), "loss_kd", "grad_kd")


def divergences(case: Case) -> Comparisons:
    """Outputs carry the settings in their names."""
    rows = rows_of(case)
    for prefix in dict.fromkeys(output.rsplit(".", 1)[0] for output in case.outputs if output.endswith(".grad")):
        terms = _divergence(prefix)
        value = "value_stable" if f"{prefix}.value_stable" in case.outputs else "author_value"
        kind = terms[0].kind
        yield from compare(case, kind, evaluate(terms, rows), f"{prefix}.{value}", f"{prefix}.grad")
        if f"{prefix}.head_ratio" in case.outputs and isinstance(terms[0], Akl):
            yield _head_ratio(case, prefix, terms[0])


def _head_ratio(case: Case, prefix: str, spec: Akl) -> Comparison:
    student, teacher, _ = soften(rows_of(case), spec)
    expected = case.outputs[f"{prefix}.head_ratio"]
    return Comparison(
        "akl", f"{prefix}.head_ratio", AklTerm(spec).head_share(student, teacher).view_as(expected), expected
    )


def _divergence(name: str) -> list[Loss]:
    """The terms behind a name such as gjsd_beta0.5_T2; raises ValueError."""
    number = r"(\d+(?:\.\d+)?)"
    match re.sub(number, "#", name), [float(text) for text in re.findall(number, name)]:
        case "forward_kl", _:
            return [Kd(temperature=1.0)]
        case "reverse_kl", _:
            return [ReverseKl()]
        case "symmetric_kl_lam#", [lam]:
            return [ReverseKl(weight=lam), Kd(weight=1.0 - lam, temperature=1.0)]
        case "js_distance_lam#", [lam]:
            return [Jsd(beta=1.0 - lam, temperature=1.0)]
        case "tv_distance", _:
            return [Tvd()]
        case "skewed_forward_kl_lam#", [lam]:
            return [SkewKl(skew=lam)]
        case "skewed_reverse_kl_lam#", [lam]:
            return [SkewReverseKl(skew=lam)]
        case "gjsd_beta#_T#", [beta, temperature]:
            return [Jsd(beta=beta, temperature=temperature)]
        case ("akl_mu#" | "akl_boundary_in_head_mu#") as kind, [mu]:
            return [Akl(mu=mu, boundary_in_head="boundary" in kind)]
    raise ValueError(f"{name} is not known")
