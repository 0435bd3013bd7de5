"""One layer by PyTorch's engine fbgemm as on a CPU without VNNI, in a Python process of its own.

`layer_without_vnni` starts the process, which runs this file: fbgemm reads the environment variable
FBGEMM_ENABLE_INSTRUCTIONS only once, so it must be set before PyTorch starts.
"""

import os
import subprocess
import sys
import tempfile

import numpy as np
import torch


def layer_without_vnni(layer, codes):
    """Return the codes that fbgemm computes with AVX2 alone: uint8 of shape (n, out).

    layer: a `qhelpers.integer.layers.Linear` with a ReLU and a weight scale for each channel.
    codes: of its inputs, uint8 of shape (n, in).

    Raises ValueError for another layer, RuntimeError with what the process wrote where it fails.
    """
    if not layer.relu or layer.weight_scale.ndim != 1:
        raise ValueError(f"layer {layer.name!r} must have a ReLU, and a scale for each channel")
    before, after = layer.before, layer.after
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            f"{folder}/layer.npz",
            codes=codes,
            weight=layer.weight,
            weight_scale=layer.weight_scale,
            bias=layer.bias,
            scales=np.float64([before.scale, after.scale]),
            zero_points=[before.zero_point, after.zero_point],
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "qhelpers.integer.without_vnni", folder],
            env=os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the process without VNNI failed: {done.stderr}")
        return np.load(f"{folder}/result.npy", allow_pickle=False)


def main(folder):
    """Read layer.npz in the folder, compute the layer, and write its codes to result.npy."""
    arrays = np.load(f"{folder}/layer.npz", allow_pickle=False)
    torch.backends.quantized.engine = "fbgemm"
    (s_x, s_y), (z_x, z_y) = arrays["scales"].tolist(), arrays["zero_points"].tolist()
    codes = torch.from_numpy(arrays["codes"])
    inputs = torch._make_per_tensor_quantized_tensor(codes, s_x, z_x)
    weight_scale = torch.from_numpy(arrays["weight_scale"]).double()
    zeros = torch.zeros(len(weight_scale), dtype=torch.int64)
    weight = torch.from_numpy(arrays["weight"])
    weights = torch._make_per_channel_quantized_tensor(weight, weight_scale, zeros, 0)
    packed = torch.ops.quantized.linear_prepack(weights, torch.from_numpy(arrays["bias"]))
    outputs = torch.ops.quantized.linear_relu(inputs, packed, s_y, z_y)
    np.save(f"{folder}/result.npy", outputs.int_repr().numpy())


if __name__ == "__main__":
    main(sys.argv[1])
