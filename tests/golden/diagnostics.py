"""Diagnostics of trained models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from tests.golden import Case, read_cases
from tests.golden.comparison import Comparison
from worker.diagnostics.features import pooled
from worker.diagnostics.mahalanobis import towards
from worker.diagnostics.probe_loss import ProbeLoss
from worker.metrics.hessian import Ritz, density, eigenpairs, eigenvalue_ratio, lanczos, negative_share, trace
from worker.metrics.loss_surface import scaled, surface
from worker.metrics.mahalanobis import ClassGaussians, PooledCovariance, whitening_of
from worker.metrics.wide_deep import (
    activation,
    kernel_regression,
    majority,
    nearest,
    optimal_coefficients,
    singular_exponent,
    tangent_kernel,
)

WITHIN = 1e-4
"""Of eigenvalues, whose search the authors stop at a change of 1e-3."""
PREDICTED, SINGULAR = 1e-6, 1e12
"""Of solutions of linear equations, and the condition number from which a kernel has none that rounding leaves."""
RESNET_STD = (0.2023, 0.1994, 0.2010)
"""Of the pixels' channels, by which the authors divide a change of their residual networks' inputs."""


def mahalanobis(case: Case) -> Iterator[Comparison]:
    """Means, precisions and scores of two layers, of inputs moved along the gradient of each layer's score."""
    if "precision" in case.outputs:
        samples = case.inputs["X"]
        whitening = whitening_of(torch.cov(samples.T, correction=0))
        yield Comparison("mahalanobis", "precision", whitening @ whitening.T, case.outputs["precision"])
        return
    deviations = RESNET_STD if case.hyper["net_type"] == "resnet" else (1.0,)
    step = case.hyper["magnitude"] / torch.tensor(deviations, dtype=torch.float64).view(1, -1, 1, 1)
    for layer in range(2):
        features = case.inputs[f"feat{layer}_train"]
        moments = PooledCovariance(case.hyper["num_classes"], features.shape[1])
        for rows in torch.arange(len(features)).split(7):
            moments.add(features[rows], case.inputs["train_y"][rows])
        gaussians = moments.gaussians()
        found = {f"mean{layer}": gaussians.means, f"prec{layer}": gaussians.precision}
        scores = partial(_scores, case, layer, gaussians)
        found[f"score{layer}"] = scores(towards(scores, case.inputs["test_x"], step))
        for name, value in found.items():
            yield Comparison("mahalanobis", name, value, case.outputs[name])


def _scores(case: Case, layer: int, gaussians: ClassGaussians, samples: Tensor) -> Tensor:
    return gaussians.scores(_features(case, samples)[layer])


def _features(case: Case, samples: Tensor) -> list[Tensor]:
    first = F.conv2d(samples, case.inputs["conv1_w"], case.inputs["conv1_b"], padding=1).tanh()
    second = F.conv2d(first, case.inputs["conv2_w"], case.inputs["conv2_b"], padding=1).tanh()
    return [pooled(first), pooled(second)]


def hessian_spectrum(case: Case) -> Iterator[Comparison]:
    """Products, trace, eigenvalues, Ritz values and density of a small network's loss; directions and losses around its
    weights; criteria of given Ritz values."""
    if case.name == "criteria":
        yield from _criteria(case)
    elif case.name.endswith("_surface"):
        yield from _surface(case)
    else:
        yield from _spectrum(case)


def _criteria(case: Case) -> Iterator[Comparison]:
    runs = [Ritz(*run) for run in zip(case.inputs["eigs"], case.inputs["weights"], strict=True)]
    powers = case.hyper["n"]
    found = {"re": [eigenvalue_ratio(runs)] * len(powers), "Kh": [negative_share(runs, power) for power in powers]}
    for name, values in found.items():
        yield Comparison("hessian", name, torch.tensor(values, dtype=torch.float64), case.outputs[name])


def _spectrum(case: Case) -> Iterator[Comparison]:
    product, random = _probed(case).product, torch.Generator().manual_seed(0)
    size = len(case.inputs["params"])
    whole = torch.stack([product(row) for row in torch.eye(size, dtype=torch.float64)])
    yield Comparison("hessian", "hessian", whole, case.outputs["hessian"], small=1.0)
    probes = iter(case.inputs["probes"])
    products = torch.stack([probe @ product(probe) for probe in case.inputs["probes"]])
    yield Comparison("hessian", "probe_vhv", products, case.outputs["probe_vhv"])
    estimate = torch.tensor(trace(product, lambda: next(probes), 0.0, 5).value, dtype=torch.float64)
    yield Comparison("hessian", "trace of probes", estimate, case.outputs["probe_vhv"].mean())
    draw = partial(torch.randn, size, generator=random, dtype=torch.float64)
    top = eigenpairs(product, draw, 2, 1e-9, 2000)
    values = torch.tensor(top.values, dtype=torch.float64)
    yield Comparison("hessian", "top_eigs", values, case.outputs["top_eigs"], within=WITHIN)
    run = lanczos(product, 2 * case.inputs["lanczos_start01"] - 1, case.hyper["lanczos_iters"])
    yield Comparison("hessian", "ritz_values", run.values, case.outputs["ritz_values"], small=1.0)
    found = density([run], case.hyper["density_bins"])
    yield Comparison("hessian", "grid", found.grid, case.outputs["grid"], small=1.0)
    yield Comparison("hessian", "density", found.values, case.outputs["density"], small=1.0, within=WITHIN)
    if case.name != "linear":  # whose Hessian has fewer eigenvalues than there are steps
        yield Comparison("hessian", "ritz_weights", run.weights, case.outputs["ritz_weights"])
        figures = {"re": eigenvalue_ratio([run]), "Kh_n0_5": negative_share([run], 0.5)}
        for name, value in {**figures, "Kh_n1": negative_share([run], 1.0)}.items():
            yield Comparison("hessian", name, torch.tensor(value, dtype=torch.float64), case.outputs[name])


def widedeep_ntk(case: Case) -> Iterator[Comparison]:
    """Tangent kernels and their predictions at several depths, activations, the singular exponent, and the classes in
    the limit, which are -1 and 1."""
    coefficients, labels = case.hyper["hermite_coeffs"], case.inputs["y"]
    known, unknown = case.inputs["X"], case.inputs["Z"]
    kernels = [
        [tangent_kernel(each @ known.T, coefficients, depth) for each in (known, unknown)]
        for depth in case.hyper["depths"]
    ]
    values = torch.stack([kernel_regression(*pair, labels.unsqueeze(1)).squeeze(1) for pair in kernels])
    found = {"K": torch.stack([among for among, _ in kernels]), "K_test": torch.stack([test for _, test in kernels])}
    found["act_values"] = activation(case.inputs["act_grid"], coefficients)
    if "alpha" in case.outputs:
        found["alpha"] = torch.tensor(singular_exponent(coefficients), dtype=torch.float64)
        optimal = torch.tensor(optimal_coefficients(case.hyper["sphere_dim"]), dtype=torch.float64)
        yield Comparison("widedeep", "optimal", optimal, torch.tensor(coefficients, dtype=torch.float64))
    if "limit_label" in case.outputs:
        limit = nearest(torch.cdist(unknown, known), labels)
        if case.hyper["A0"]:
            limit = torch.full_like(limit, 2 * majority((labels > 0).long(), 2) - 1)
        found["limit_label"] = limit
    for name, value in found.items():
        yield Comparison("widedeep", name, value, case.outputs[name])
    solved = torch.tensor([float(torch.linalg.cond(among)) < SINGULAR for among, _ in kernels])
    predicted, expected = values[solved], case.outputs["pred"][solved]
    yield Comparison("widedeep", "pred", predicted, expected, within=PREDICTED)
    yield Comparison("widedeep", "sign of pred", predicted.sign(), expected.sign())


def _surface(case: Case) -> Iterator[Comparison]:
    loss = _probed(case)
    axes = [case.inputs[name] for name in ("dir1", "dir2")]
    filtered = [loss.join(scaled(loss.split(axis), loss.tensors, "filter")) for axis in axes]
    layered = loss.join(scaled(loss.split(axes[0]), loss.tensors, "layer"))
    losses = surface(loss.at, loss.weights, filtered, torch.tensor(case.hyper["alphas"], dtype=torch.float64))
    found = {"dir1_filter": filtered[0], "dir2_filter": filtered[1], "dir1_layer": layered, "surface": losses}
    for name, value in found.items():
        yield Comparison("loss-landscape", name, value, case.outputs[name])


def _probed(case: Case) -> ProbeLoss:
    """Of the network of a case, or of the case whose surface this is."""
    name = case.name.removesuffix("_surface")
    inputs = next(one.inputs for one in read_cases(case.path) if one.name == name)
    samples, labels, weights = inputs["x"], inputs["y"].long(), inputs["params"]
    width, classes = samples.shape[1], int(labels.max()) + 1
    hidden = (len(weights) - classes) // (width + 1 + classes)
    two = [nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, classes)]
    network = nn.Sequential(*(two if name == "mlp" else [nn.Linear(width, classes)])).double()
    vector_to_parameters(weights, network.parameters())
    return ProbeLoss(network, [(samples[rows], labels[rows]) for rows in torch.arange(len(labels)).split(7)])
