"""Losses of rows of logits, and their gradients, computed where memory decides: Triton on CUDA, plain PyTorch elsewhere."""
