"""Divisions and factors whose gradients are given."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from worker.students.layers.running import divide, mean_over_batch, scale_gradient


def test_a_division_has_the_gradient_that_it_is_given() -> None:
    x, by = torch.randn(4, 3, requires_grad=True), torch.tensor([1.0, 2.0, 4.0])
    out = divide(x, by, lambda towards, quotient: towards + 10 * quotient)
    out.backward(torch.ones(4, 3))
    assert_close(out, x / by)
    assert_close(x.grad, 1 + 10 * (x / by).detach())


def test_a_scaled_gradient_leaves_values_alone() -> None:
    x, factor = torch.randn(4, 3, requires_grad=True), torch.tensor([1.0, 2.0, 4.0])
    out = scale_gradient(x, factor)
    out.sum().backward()
    assert torch.equal(out, x)
    assert_close(x.grad, factor.expand(4, 3))


def test_alone_the_mean_is_that_of_the_rows() -> None:
    rows = torch.randn(7, 3)
    assert_close(mean_over_batch(rows), rows.mean(0))
