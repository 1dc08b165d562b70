"""Training: stages, loop, state, checkpoints and metrics."""
