"""How fast the course's code is, next to plain loops, PyTorch's kernels and a naive search."""
