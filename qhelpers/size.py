"""How many bytes a model's parameters take on disk."""

import io

import torch


def print_size_of_model(model):
    """Print the size in kB (1,000 bytes) of `model`'s state_dict as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    print(f"Size (KB): {buffer.getbuffer().nbytes / 1e3}")
