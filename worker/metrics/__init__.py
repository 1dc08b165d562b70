"""Metrics of outputs: pure functions of tensors on the CPU, computed in float64.

torchmetrics has most of them, but divides in float32, treats small spreads as 0 and has other edges of bins; the tests
compare both.
"""
