"""A table of what a quantized model holds."""

from qhelpers.ptq.layers import QuantizedActivation, QuantizedLayer


def summary(quantized):
    """Return a table of the layers and activations: bits, scale, zero point, range.

    The ends of a range are what the first and the last code stand for. Of weights with several
    scales it is the widest.
    """
    lines = [f"{'':<24}{'bits':>5}{'scale':>22}{'zero point':>12}  range"]
    for name, module in quantized.graph.named_modules():
        if isinstance(module, QuantizedLayer):
            low, high = module.scale.min().item(), module.scale.max().item()
            scale = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
            half = 2 ** (module.bits - 1)
            ends = f"{-half * high:.4g} to {(half - 1) * high:.4g}"
            sharing = f"{module.granularity}{', the widest' if module.scale.numel() > 1 else ''}"
            row = f"{module.bits:>5}{scale:>22}{0:>12}  {ends}  {sharing}"
            lines.append(f"{name + ' weight':<24}{row}")
        elif isinstance(module, QuantizedActivation):
            label, bits = module.name + " activation", module.top.bit_length()
            if module.dynamic:
                lines.append(f"{label:<24}{bits:>5}{'dynamic':>22}")
                continue
            scale, zero = module.scale.item(), module.zero_point.item()
            ends = f"{-zero * scale:.4g} to {(module.top - zero) * scale:.4g}"
            lines.append(f"{label:<24}{bits:>5}{scale:>22.4g}{zero:>12}  {ends}")
    if quantized.kept_in_float:
        lines.append("in floats: " + ", ".join(quantized.kept_in_float))
    return "\n".join(lines)
