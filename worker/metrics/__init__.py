"""Measures of how good outputs are: pure functions of tensors on the CPU, computed in float64."""
