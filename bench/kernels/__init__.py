"""Time and memory of the kernels compared with other libraries; `python -m bench.gpu` is the same on CUDA."""
