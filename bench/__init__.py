"""How fast the course's code is, beside plain loops, PyTorch's kernels and a naive search."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy is imported: its BLAS reads it then
