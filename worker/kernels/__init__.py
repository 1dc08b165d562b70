"""Losses of rows of logits, with their gradients, where memory decides: Triton on CUDA, plain PyTorch elsewhere."""
