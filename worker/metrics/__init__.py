"""Measures of how good outputs are: pure functions of tensors on the CPU, computed in float64.

torchmetrics has most of them, but divides in float32, takes small spreads for none and other edges of bins; the tests
hold both against each other.
"""
