"""Stages, loop, state, checkpoints and metrics of one training."""
