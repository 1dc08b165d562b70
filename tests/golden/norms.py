"""Norms, with the state that some carry from one batch to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from app.recipe.students.layers import (
    CrmsNorm,
    L1BatchNorm,
    L1LayerNorm,
    LayerNorm,
    NormSpec,
    PowerNorm,
    RmsNorm,
    UnifiedNorm,
)
from tests.golden import Case
from tests.golden.comparison import Comparison
from tests.golden.quantisation import shift_quant
from worker.students.layers.norms import IMAGE_NORMS, TOKEN_NORMS

WIDE = torch.float64


def norms(case: Case) -> Iterator[Comparison]:
    """LayerNorm, RMSNorm and CRMSNorm, and the RMSNorm of its paper's code, whose offset is added here."""
    if case.name == "bf16_input":
        for name, spec in {"layer_norm": LayerNorm(), "rms_norm": RmsNorm(eps=1e-5), "crms_norm": CrmsNorm()}.items():
            found = _tokens(spec, case.inputs["x"])(case.inputs["x"]).detach()
            yield Comparison(spec.kind, name, found, case.outputs[name])
        return
    module = _tokens(_spec_of(case), case.inputs["x"])
    offset = case.inputs.get("offset", torch.zeros((), dtype=WIDE)).clone().requires_grad_()
    scale, shift = (case.inputs.get(name) for name in ("gamma", "beta"))
    set_weights(module, case.inputs.get("scale", scale), shift)
    x = case.inputs["x"].clone().requires_grad_()
    y = module(x) + offset
    yield Comparison(_spec_of(case).kind, "y", y.detach(), case.outputs["y"])
    wanted = {"grad_x": x, "grad_offset": offset, "grad_scale": module.weight, "grad_gamma": module.weight}
    wanted["grad_beta"] = getattr(module, "bias", None)
    yield from _gradients(case, _spec_of(case).kind, y, wanted)


def l1_norm(case: Case) -> Iterator[Comparison]:
    """Over the batch axis, where rows are images of one pixel, and over the channels; and the quantisation of matrix
    products, which is of the same paper."""
    if not case.name.startswith("l1_"):
        yield from shift_quant(case)
        return
    spec: NormSpec = L1BatchNorm() if case.name.startswith("l1_batch") else L1LayerNorm()
    x = case.inputs["x"].clone().requires_grad_()
    registry, shape = (IMAGE_NORMS, (*x.shape, 1, 1)) if isinstance(spec, L1BatchNorm) else (TOKEN_NORMS, x.shape)
    module = registry.build(spec, x.shape[-1]).to(WIDE)
    set_weights(module, case.inputs["gamma"], case.inputs["beta"])
    y = module(x.view(shape)).view_as(x)
    yield Comparison(spec.kind, "y", y.detach(), case.outputs["y"])
    yield from _gradients(case, spec.kind, y, {"grad_x": x, "grad_gamma": module.weight, "grad_beta": module.bias})


def power_norm(case: Case) -> Iterator[Comparison]:
    """Batches one after the other, in the layout (T, B, C)."""
    hyper = case.hyper
    spec = PowerNorm(
        groups=hyper["group_num"],
        forward_decay=hyper["alpha_fwd"],
        backward_decay=hyper["alpha_bkw"],
        eps=hyper["eps"],
        warmup_steps=hyper["warmup_iters"],
    )
    module = _with_weights(spec, case)
    masks = [~mask.T for mask in case.inputs["pad_mask"]]
    yield from _steps(case, spec.kind, module, masks, ("running_phi", "ema_gz"))


def unified_norm(case: Case) -> Iterator[Comparison]:
    """Batches one after the other, or one after a given state."""
    hyper = case.hyper
    spec = UnifiedNorm(
        window=hyper["window_size"],
        decay=hyper["momentum"],
        eps=hyper["eps"],
        warmup_steps=hyper["warmup_iters"],
        filter_outliers=hyper.get("outlier_filtration", False),
    )
    module = _with_weights(spec, case)
    if "iters_before" in hyper:
        yield from _one_step(case, spec.kind, module)
    else:
        masks = [None] * len(case.inputs["x"])
        yield from _steps(case, spec.kind, module, masks, ("running_var", "ema_gz", "buffer_x2"))


def _one_step(case: Case, kind: str, module: nn.Module) -> Iterator[Comparison]:
    state = {name: case.inputs[f"{name}_before"] for name in ("buffer_x2", "buffer_gz", "running_var", "ema_gz")}
    iterations = {"iterations": torch.tensor(case.hyper["iters_before"])}
    module.load_state_dict({**module.state_dict(), **state, **iterations})
    found = _step(module, case.inputs["x"], case.inputs["cotangent"], None)
    found |= {f"{name}_after": module.get_buffer(name) for name in ("running_var", "ema_gz")}
    for name in ("y", "grad_x", "grad_weight", "running_var_after", "ema_gz_after"):
        yield Comparison(kind, name, found[name], case.outputs[name], name.startswith("grad"))


def _steps(
    case: Case, kind: str, module: nn.Module, masks: Sequence[Tensor | None], buffers: Sequence[str]
) -> Iterator[Comparison]:
    for number, (x, cotangent, mask) in enumerate(zip(case.inputs["x"], case.inputs["cotangent"], masks, strict=True)):
        found = _step(module, x, cotangent, mask) | {name: module.get_buffer(name).clone() for name in buffers}
        for name, value in found.items():
            yield Comparison(kind, name, value, case.outputs[name][number], name.startswith("grad"))
    yield Comparison(kind, "eval_y", module.eval()(case.inputs["eval_x"]).detach(), case.outputs["eval_y"])


def _step(module: nn.Module, x: Tensor, cotangent: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = module.train()(x, mask)
    names = ("grad_x", "grad_weight", "grad_bias")
    return {
        "y": y.detach(),
        **dict(zip(names, torch.autograd.grad(y, (x, *module.parameters()), cotangent), strict=True)),
    }


def _gradients(case: Case, kind: str, y: Tensor, wanted: Mapping[str, Tensor | None]) -> Iterator[Comparison]:
    given = {name: tensor for name, tensor in wanted.items() if name in case.outputs and tensor is not None}
    for name, found in zip(given, torch.autograd.grad(y, list(given.values()), case.inputs["cotangent"]), strict=True):
        yield Comparison(kind, name, found, case.outputs[name], is_gradient=True)


def _spec_of(case: Case) -> NormSpec:
    eps = case.hyper["eps"]
    if case.name.startswith("rms_zhang"):
        share = case.hyper["p"]
        return RmsNorm(eps=eps, eps_mode="outside", partial=share if share > 0 else None)
    if case.name.startswith("rms"):
        return RmsNorm(eps=eps)
    return CrmsNorm(eps=eps) if case.name.startswith("crms") else LayerNorm(eps=eps)


def _tokens(spec: NormSpec, x: Tensor) -> nn.Module:
    return TOKEN_NORMS.build(spec, x.shape[-1]).to(WIDE)


def _with_weights(spec: NormSpec, case: Case) -> nn.Module:
    module = _tokens(spec, case.inputs["x"])
    set_weights(module, case.inputs.get("weight"), case.inputs.get("bias"))
    return module


@torch.no_grad()
def set_weights(module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
    """Copy these, where they are given, to the parameters of a norm, in place; floating, of their shapes."""
    for name, given in (("weight", weight), ("bias", bias)):
        if given is not None:
            module.get_parameter(name).copy_(given)
