"""How fast the course's code is, beside plain loops, PyTorch's kernels and a naive search."""
