"""Time and memory of the kernels beside what others offer; `python -m bench.gpu` is the same on CUDA."""
