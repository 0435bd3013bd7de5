"""A small language model: read from its file, run, and measured, in plain PyTorch."""
