"""What the course needs from torch.ao.quantization while it exists: choosing an engine, hiding
known warnings, quantizing VerySimpleNet, and reading its codes."""

import copy
import warnings

import torch
from torch import nn

# In order of preference. The outputs in the notebooks were made with the first one.
ENGINES = ("fbgemm", "qnnpack", "onednn")

# What PyTorch says of its own code: of torch.ao's age and, in the last, of torch.onnx's until 2.13.
KNOWN_WARNINGS = (
    "torch.ao.quantization is deprecated",
    "Please use quant_min and quant_max to specify the range",
    "torch.quantize_per_tensor, torch.quantize_per_channel and other quantized",
    "TypedStorage is deprecated",
    "`isinstance.treespec, LeafSpec.` is deprecated",
)


def has_torch_ao():
    """Return whether this PyTorch has torch.ao.quantization; print a line if it doesn't."""
    try:
        import torch.ao.quantization  # noqa: F401
    except ImportError:
        print("Skipped: this PyTorch has no torch.ao.quantization, which is the reference here.")
        return False
    return True


def choose_engine():
    """Set torch's quantized engine to the first of ENGINES available here; return its name.

    Raises RuntimeError if it has none of them.
    """
    available = torch.backends.quantized.supported_engines
    for engine in ENGINES:
        if engine in available:
            torch.backends.quantized.engine = engine
            return engine
    raise RuntimeError(f"torch has the quantized engines {available}; one of {ENGINES} is needed")


def silence_known_warnings():
    """Hide the warnings in KNOWN_WARNINGS, which are about PyTorch's own code; show all others."""
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message)


def quantize_by_torch(
    net, images, engine="fbgemm", *, fused=True, granularity="per channel", reduce_range=True
):
    """Return a VerySimpleNet quantized by torch.ao: a sequence that computes in integers.

    net: the trained VerySimpleNet. images: the calibration images. Ranges are min-max.
    engine: one of torch's quantized engines; it becomes the current one.
    fused: fuse each layer with its ReLU.
    granularity: of the weights, "per tensor" or "per channel".
    reduce_range: choose scale and zero point of the activations for 7 bits.
    """
    from torch.ao import quantization as ao

    torch.backends.quantized.engine = engine
    layers = [net.linear1, nn.ReLU(), net.linear2, nn.ReLU(), net.linear3]
    modules = [ao.QuantStub(), nn.Flatten(), *copy.deepcopy(layers), ao.DeQuantStub()]
    model = nn.Sequential(*modules).eval()
    if fused:
        model = ao.fuse_modules(model, [["2", "3"], ["4", "5"]])
    per_channel = granularity == "per channel"
    observer = ao.MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=reduce_range)
    model.qconfig = ao.QConfig(
        activation=observer,
        weight=ao.default_per_channel_weight_observer
        if per_channel
        else ao.default_weight_observer,
    )
    model = ao.prepare(model)
    with torch.no_grad():
        model(images)
    return ao.convert(model)


@torch.no_grad()
def codes_of_torch(model, images):
    """Return the codes that the children of a torch.ao model return, uint8 arrays, in order.

    Those that only reshape are left out.
    """
    seen, hooks = [], []
    for module in model.children():
        if not isinstance(module, (nn.Flatten, nn.Identity)):
            hooks.append(module.register_forward_hook(lambda m, x, out: seen.append(out)))
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [out.int_repr().numpy() for out in seen if out.is_quantized]


def engine_saturates(engine):
    """Return whether an engine, on this CPU, adds two products in 16 bits.

    Two inputs of 255 times two weights of 127 make 64,770, more than 32,767.
    """
    return code_of_linear(engine, [255, 255], 1.0, [127, 127], 1.0, 1000.0) < 65


def engine_arithmetic(engine):
    """Return which arithmetic of `IntegerModel` has an engine's codes, on this CPU.

    "x86" has fbgemm's in Linear. oneDNN has three, and two codes tell them apart. Its kernels for
    AVX-512, and for AVX2 with VNNI, multiply by s_x and then by s_w; those for older CPUs by the
    product of the two. In float32 the product makes 3 * 1/15 * 2.5 one half, which rounds to 0,
    and the other way it is more. From PyTorch 2.15 on (oneDNN 3.13), the newer kernels leave a
    Linear whose inputs have a zero point to oneDNN's reference code, which divides by s_y, and
    takes thousands of times as long: 3 / (2/13) is 19.5, which rounds to 20, and 3 times the
    reciprocal is less.
    """
    if engine != "onednn":
        return "fbgemm" if engine == "x86" else engine
    if code_of_linear(engine, [3], 1 / 15, [1], 2.5, 1.0) == 0:
        return "onednn"
    divides = code_of_linear(engine, [4], 1.0, [1], 1.0, 2 / 13, zero_point=1) == 20
    return "onednn-brgemm-division" if divides else "onednn-brgemm"


def code_of_linear(engine, inputs, input_scale, weights, weight_scale, output_scale, zero_point=0):
    """Return the code that an engine makes of lists of input and weight codes.

    zero_point: of the inputs. That of the outputs and the bias are 0. The current engine stays
        what it was.
    """
    inputs, weights = (
        torch.quantize_per_tensor(scale * (torch.tensor([codes]) - zero), scale, zero, dtype)
        for codes, scale, zero, dtype in [
            (inputs, input_scale, zero_point, torch.quint8),
            (weights, weight_scale, 0, torch.qint8),
        ]
    )
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        packed = torch.ops.quantized.linear_prepack(weights, torch.zeros(1))
        return torch.ops.quantized.linear(inputs, packed, output_scale, 0).int_repr().item()
    finally:
        torch.backends.quantized.engine = before
