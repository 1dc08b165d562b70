"""Gaussian naive Bayes with one variance per feature."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.diagnostics.features import LabelledFeatures
from worker.diagnostics.linear_evaluation import logistic_regression
from worker.students.heads.nb_diag import ClassMoments, linear_form

KIND = "nb-diag"
SOLVED = 1e-4
"""Of the logistic regression, whose solver is iterative."""


def naive_bayes(case: Case) -> Iterator[Comparison]:
    """Means, variances and predictions, from one batch and from two. The authors add their smoothing to each variance;
    their likelihoods leave the class shares out."""
    features, labels, held_out = case.inputs["X"], case.inputs["y"].long(), case.inputs["X_test"]
    smoothing, classes = case.hyper["var_smoothing"], int(labels.max()) + 1
    whole, parts = (ClassMoments(classes, features.shape[1]) for _ in range(2))
    whole.add(features, labels)
    for rows in (slice(0, len(features) // 2), slice(len(features) // 2, None)):
        parts.add(features[rows], labels[rows])
    for moments in (whole, parts):
        shares = moments.counts / moments.counts.sum()
        yield Comparison(KIND, "mus", moments.means, case.outputs["mus"])
        yield Comparison(KIND, "vars", moments.variances + smoothing, case.outputs["vars"])
        yield Comparison(KIND, "prior", shares, case.outputs["prior"])
        weight, bias = linear_form(moments, smoothing)
        scores = held_out @ weight.T + bias
        yield Comparison(KIND, "pred", scores.argmax(-1).double(), case.outputs["pred"].double())
        likelihoods = case.outputs["loglik"]
        if case.name != "const_feature":  # whose least variance is larger here
            found = scores - shares.log()
            yield Comparison(KIND, "loglik", found - found[:, :1], likelihoods - likelihoods[:, :1])
    yield from _logistic(case)


def _logistic(case: Case) -> Iterator[Comparison]:
    model = logistic_regression(LabelledFeatures(case.inputs["X"], case.inputs["y"].long()), 1.0, 1000)
    found = {"lr_coef": model.coef_, "lr_intercept": model.intercept_}
    found["lr_proba"] = model.predict_proba(case.inputs["X_test"].numpy())
    for name, values in found.items():
        expected = case.outputs[name]
        yield Comparison("linear-evaluation", name, torch.from_numpy(values), expected, small=1.0, within=SOLVED)
