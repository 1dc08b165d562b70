"""Values and gradients of losses on features, taken through their terms as in training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses import LossSpec
from app.recipe.losses.features import (
    ActivationBoundary,
    AttentionPair,
    AttentionRelation,
    InheritanceExploration,
    Lipschitz,
    MarginPair,
    MiAlpha,
    Overhaul,
    Projections,
    Rkd,
)
from app.recipe.losses.reconstruction import FeatureReconstruction, MinedReconstruction, PrototypeCoherence
from app.recipe.losses.taps import Pair, Tap
from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.losses import build_term
from worker.losses.base import Features, LossInputs, LossTerm
from worker.losses.builder import LossBuilder, TeacherSide
from worker.losses.features.adapters import Adapter
from worker.losses.features.attention_relation import relations
from worker.losses.features.inheritance import explore_loss, inherit_loss, mean_power
from worker.losses.features.lipschitz import LipschitzTerm, spectral_norm, transmitting_matrix
from worker.losses.features.mi_alpha import MiAlphaTerm, mi_alpha
from worker.losses.features.overhaul import OverhaulTerm, margins, partial_squares

Comparisons = Iterator[Comparison]
Named = Mapping[str, Tensor]
CONNECTOR = {"conv": "map.weight", "bn_weight": "norm.weight", "bn_bias": "norm.bias"}
LIKENESS = {"inherit": inherit_loss, "explore": explore_loss}


class Bench:
    """Features of a case under the names of its inputs, and the builder that a term is built in.

    `of_teacher` names those that are the teacher's; `network` holds modules of the teacher.
    """

    def __init__(
        self, inputs: Named, of_teacher: Sequence[str], network: nn.Module | None = None, tokens: Tensor | None = None
    ) -> None:
        taught = {name: inputs[name] for name in inputs if name in of_teacher}
        self.own = {name: inputs[name].clone().requires_grad_() for name in inputs if name not in of_teacher}
        student, teacher = ({Tap(path=name): seen for name, seen in side.items()} for side in (self.own, taught))
        count = len(next(iter(self.own.values())))
        self.rows = LossInputs(
            torch.zeros(count, 1), torch.zeros(count), None, features=Features(student, teacher, tokens)
        )
        shapes = [{tap: seen.shape for tap, seen in side.items()} for side in (student, teacher)]
        self.builder = LossBuilder(shapes[0], {"teacher": TeacherSide(network or nn.Module(), shapes[1])}, 1)

    def build(self, spec: LossSpec) -> LossTerm:
        """The term of `spec`, with parts in float64."""
        term = build_term(spec, self.builder)
        self.builder.aux_modules.double()
        return term

    def run(self, term: LossTerm) -> tuple[Tensor, Named]:
        """The mean over the rows, and its gradient at each of the student's features."""
        return grade(term(self.rows).mean(), self.own)


def grade(loss: Tensor, own: Named) -> tuple[Tensor, Named]:
    """Value, and gradients by the names of `own`."""
    gradients = torch.autograd.grad(loss, list(own.values()))
    return loss.detach(), dict(zip(own, gradients, strict=True))


def compare(
    case: Case, kind: str, result: tuple[Tensor, Named], value: str, gradient: str = "grad_{}", scale: float = 1.0
) -> Comparisons:
    """`scale` times the value and the gradients of `result` against the outputs of these names."""
    loss, gradients = result
    yield from expect(case, kind, value, scale * loss)
    for name, found in gradients.items():
        if (output := gradient.format(name)) in case.outputs:
            yield Comparison(kind, output, scale * found, case.outputs[output], is_gradient=True)


def expect(case: Case, kind: str, output: str, found: Tensor) -> Comparisons:
    """`found` against the output of this name, if there is one; its shape may lack axes of length 1."""
    if output in case.outputs:
        yield Comparison(kind, output, found.reshape(case.outputs[output].shape), case.outputs[output])


def rkd(case: Case) -> Comparisons:
    """Distances and angles each on their own; the file's DarkRank is not of this package."""
    for part in ("distance", "angle"):
        bench = Bench(case.inputs, ["teacher"])
        weights = {"distance": 0.0, "angle": 0.0, part: 1.0}
        spec = Rkd(pair=pair("student", "teacher"), delta=case.hyper["huber_delta"], **weights)
        yield from compare(case, "rkd", bench.run(bench.build(spec)), f"loss_{part}", f"grad_{{}}_{part}")


def ab(case: Case) -> Comparisons:
    """Without connectors. A sum over the batch has no weight, a loss of stages has the authors'."""
    stages = numbered(case, "student") or [""]
    bench = Bench(case.inputs, [f"teacher{stage}" for stage in stages])
    pairs = [pair(f"student{stage}", f"teacher{stage}") for stage in stages]
    spec = ActivationBoundary(pairs=pairs, margin=case.hyper["margin"], adapter="none")
    value, scale = ("loss", weight_of(spec)) if "loss" in case.outputs else ("loss_sum", len(bench.rows.student))
    yield from compare(case, "activation-boundary", bench.run(bench.build(spec)), value, scale=scale)


def overhaul(case: Case) -> Comparisons:
    """Margins, the distance behind given margins, or all of it with connectors."""
    if "margin" in case.outputs:
        yield from expect(case, "overhaul", "margin", margins(case.inputs["bn_weight"], case.inputs["bn_bias"]))
    elif "margin" in case.inputs:
        own = {"student": case.inputs["student"].clone().requires_grad_()}
        target = torch.maximum(case.inputs["teacher"], case.inputs["margin"])
        yield from compare(case, "overhaul", grade(partial_squares(own["student"], target).sum(), own), "loss_sum")
    else:
        yield from _overhaul_stages(case)


def _overhaul_stages(case: Case) -> Comparisons:
    stages = numbered(case, "student")
    norms = nn.ModuleDict({stage: _batch_norm(case, f"bn{stage}") for stage in stages})
    students, teachers = ([f"{side}{stage}" for stage in stages] for side in ("student", "teacher"))
    bench = Bench({name: case.inputs[name] for name in students + teachers}, teachers, norms)
    pairs = [
        MarginPair(student=Tap(path=f"student{stage}"), teacher=Tap(path=f"teacher{stage}"), batch_norm=stage)
        for stage in stages
    ]
    spec = Overhaul(pairs=pairs)
    term = bench.build(spec)
    assert isinstance(term, OverhaulTerm)
    for stage, (joint, found) in zip(stages, term.stages, strict=True):
        assert isinstance(joint.adapter, Adapter)
        bench.own |= _fill(case, f"connector{stage}_", CONNECTOR, joint.adapter)
        yield from expect(case, "overhaul", f"margin{stage}", found)
    yield from compare(case, "overhaul", bench.run(term), "loss", scale=weight_of(spec))


def london(case: Case) -> Comparisons:
    """The student's features come from connectors, so there are none here."""
    stages = numbered(case, "student")
    starts = {name.removeprefix("v0_"): case.inputs[name] for name in case.inputs if name.startswith("v0_")}
    teachers = [f"teacher{stage}" for stage in stages]
    bench = Bench({name: case.inputs[name] for name in case.inputs if not name.startswith("v0_")}, teachers)
    iterations = case.hyper["power_iterations"]
    spec = Lipschitz(
        pairs=[pair(f"student{stage}", f"teacher{stage}") for stage in stages], iterations=iterations, adapter="none"
    )
    term = bench.build(spec)
    assert isinstance(term, LipschitzTerm)
    order = iter([starts[f"{side}{stage}"] for stage in stages[:-1] for side in ("student", "teacher")])
    term.start = lambda matrix: next(order)  # type: ignore[method-assign]
    yield from compare(case, "lipschitz", bench.run(term), "loss")
    for name, start in starts.items():
        following = re.sub(r"\d+", lambda number: str(int(number[0]) + 1), name)
        matrix = transmitting_matrix(case.inputs[name], case.inputs[following])
        yield from expect(case, "lipschitz", f"sigma_{name}", spectral_norm(matrix, start, iterations))


def ie_kd(case: Case) -> Comparisons:
    """On given codes; the file's CKA is not of this package."""
    for output in case.outputs:
        if match := re.fullmatch(r"loss_(cos|norm_p([\d.]+))", output):
            yield from _likeness(case, match[1], float(match[2] or 1.0))
        elif match := re.fullmatch(r"rec_p([\d.]+)", output):
            yield from _restored(case, match[1])


def _likeness(case: Case, ending: str, p: float) -> Comparisons:
    kind, (inherit, explore) = "inheritance-exploration", case.hyper["weights"]
    spec = InheritanceExploration(
        pair=pair("s", "t"), inherit=inherit, explore=explore, p=p, distance="cosine" if ending == "cos" else "norm"
    )
    own = {name: case.inputs[f"factor_{name}"].clone().requires_grad_() for name in LIKENESS}
    source = case.inputs["factor_source"]
    parts = {name: loss(spec, own[name], source, None).mean() for name, loss in LIKENESS.items()}
    result = grade(parts["inherit"] + parts["explore"], own)
    yield from compare(case, kind, result, f"loss_{ending}", f"grad_{{}}_{ending}")
    for name, weight in (("inherit", inherit), ("explore", explore)):
        if weight:
            yield from expect(case, kind, f"{name}_{ending}", parts[name].detach() / weight)


def _restored(case: Case, power: str) -> Comparisons:
    """The restored feature is the code of the half that inherits."""
    own = {"rec": case.inputs["factor_inherit"].clone().requires_grad_()}
    loss = mean_power(case.inputs["factor_source"] - own["rec"], float(power), None).mean()
    yield from compare(case, "feature-autoencoder", grade(loss, own), f"rec_p{power}", f"grad_{{}}_p{power}")


def distiller(case: Case) -> Comparisons:
    """On given scores, or with the critic; `alpha_logit` is taken as it is, since alpha may be all but 1."""
    logit = torch.tensor(case.hyper["alpha_logit"], dtype=torch.float64)
    logs = F.logsigmoid(logit), F.logsigmoid(-logit)
    if "scores" in case.inputs:
        own = {name: case.inputs[name].clone().requires_grad_() for name in ("scores", "log_baseline")}
        valid = torch.ones(len(own["scores"]), dtype=torch.bool)
        loss = mi_alpha(own["scores"], own["log_baseline"], logs, valid).mean()
        yield from compare(case, "mi-alpha", grade(loss, own), "loss_stable", "grad_{}_stable")
        return
    names = ["hidden_student", "hidden_teacher"]
    bench = Bench({name: case.inputs[name] for name in names}, names[1:])
    hidden, embedding = case.inputs["critic._s.2.weight"].shape[0], case.inputs["critic._s.4.weight"].shape[0]
    spec = MiAlpha(pair=pair(*names), alpha=float(logit.sigmoid()), hidden=hidden, embedding=embedding)
    term = bench.build(spec)
    assert isinstance(term, MiAlphaTerm)
    term.logs = logs
    for prefix, part in (("critic._s.", "student"), ("critic._t.", "teacher"), ("baseline._t.", "baseline")):
        layers = term.critic.get_submodule(part)
        bench.own |= _fill(case, prefix, {name: name for name, _ in layers.named_parameters()}, layers)
    yield from compare(case, "mi-alpha", bench.run(term), "loss")


def autodistil(case: Case) -> Comparisons:
    """Masked tokens are padding."""
    mask = case.inputs.get("attention_mask_additive", torch.zeros(()))
    tokens = mask[:, 0, 0] == 0.0 if mask.ndim else None
    inputs = {name: case.inputs[f"{name}_student"] for name in "qkv"}
    teachers = {f"{name}_teacher": case.inputs[f"{name}_teacher"] for name in "qkv"}
    layer = AttentionPair(student=projections("{}"), teacher=projections("{}_teacher"))
    for relation in ("mse", "kl"):
        bench = Bench(inputs | teachers, list(teachers), tokens=tokens)
        spec = AttentionRelation(layer=layer, relation_heads=case.hyper["relation_heads"], relation=relation)
        yield from compare(
            case, "attention-relation", bench.run(bench.build(spec)), f"loss_{relation}", f"grad_{{}}_{relation}"
        )
    for side in ("student", "teacher"):
        found = relations(case.inputs[f"q_{side}"], case.hyper["relation_heads"]) + mask
        yield from expect(case, "attention-relation", f"relation_qq_{side}", found)


def inp_former(case: Case) -> Comparisons:
    """Each stage of the stacked maps as a pair, and as a group of layers; or the coherence of prototypes."""
    if "enc" not in case.inputs:
        yield from _coherence(case)
        return
    sides = {"s": case.inputs["dec"], "t": case.inputs["enc"]}
    maps = {f"{side}{number}": each for side, whole in sides.items() for number, each in enumerate(whole)}
    stages = range(len(sides["s"]))
    bench = Bench(maps, [f"t{number}" for number in stages])
    spec = MinedReconstruction(pairs=[pair(f"s{number}", f"t{number}") for number in stages], gamma=case.hyper["gamma"])
    loss, gradients = bench.run(bench.build(spec))
    yield from expect(case, "inp-former", "loss", loss)
    found = torch.stack([gradients[f"s{number}"] for number in stages])
    yield Comparison("inp-former", "grad_dec", found, case.outputs["grad_dec"], is_gradient=True)
    grouped = {name: each.flatten(3).permute(1, 0, 3, 2) for name, each in zip("st", sides.values(), strict=True)}
    bench = Bench({"decoded": grouped["s"], "encoded": grouped["t"]}, [])
    loss, gradients = bench.run(bench.build(FeatureReconstruction(gamma=case.hyper["gamma"])))
    yield from expect(case, "feature-reconstruction", "loss", loss)
    found = gradients["decoded"].permute(1, 0, 3, 2).reshape(case.outputs["grad_dec"].shape)
    yield Comparison("feature-reconstruction", "grad_dec", found, case.outputs["grad_dec"], is_gradient=True)


def _coherence(case: Case) -> Comparisons:
    """Queries are the tokens, keys the prototypes."""
    bench = Bench({"tokens": case.inputs["query"], "prototypes": case.inputs["keys"]}, [])
    loss, gradients = bench.run(bench.build(PrototypeCoherence()))
    yield from expect(case, "prototype-coherence", "loss", loss)
    for ours, theirs in (("tokens", "grad_query"), ("prototypes", "grad_keys")):
        yield Comparison("prototype-coherence", theirs, gradients[ours], case.outputs[theirs], is_gradient=True)


def pair(student: str, teacher: str) -> Pair:
    return Pair(student=Tap(path=student), teacher=Tap(path=teacher))


def projections(name: str) -> Projections:
    queries, keys, values = (Tap(path=name.format(which)) for which in "qkv")
    return Projections(queries=queries, keys=keys, values=values)


def numbered(case: Case, prefix: str) -> list[str]:
    """Numbers behind `prefix` among the inputs, in order."""
    found = (re.fullmatch(rf"{prefix}(\d+)", name) for name in case.inputs)
    return sorted((match[1] for match in found if match), key=int)


def weight_of(spec: LossSpec) -> float:
    """The default, which is the authors'."""
    assert isinstance(spec.weight, float)
    return spec.weight


def _batch_norm(case: Case, name: str) -> nn.BatchNorm2d:
    weight, bias = (case.inputs[f"{name}_{part}"] for part in ("weight", "bias"))
    norm = nn.BatchNorm2d(len(weight)).double()
    norm.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    return norm


def _fill(case: Case, prefix: str, names: Mapping[str, str], module: nn.Module) -> dict[str, Tensor]:
    """Load parameters of `module` from inputs of the names `prefix` + key; the parameters by these names."""
    parameters = {prefix + name: module.get_parameter(parameter) for name, parameter in names.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(case.inputs[name])
    return dict(parameters)
