"""Memory-saving losses of rows of logits, with their gradients: Triton on CUDA, plain PyTorch elsewhere."""
