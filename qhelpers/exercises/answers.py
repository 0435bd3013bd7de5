"""What makes the answer to each exercise right, and the hint for each mistake that is likely."""

import numpy as np
import torch

from qhelpers.affine import asymmetric_dequantize, asymmetric_quantization, quantization_error
from qhelpers.ptq.layers import QuantizedActivation, QuantizedLayer
from qhelpers.ptq.model import quantize_model
from qhelpers.training import test


class Wrong(Exception):
    """An answer is not right; the message is a hint for the reader."""


def require(condition, hint):
    if not condition:
        raise Wrong(hint)


def real(answer, name):
    """Return an answer as a float."""
    try:
        return float(answer)
    except (TypeError, ValueError):
        raise Wrong(f"{name} should be a number, and is {answer!r}.") from None


def reals(answer, count=None):
    """Return an answer as a float64 array, of `count` numbers if it is given."""
    require(answer is not None, "It is None: does your function return something?")
    try:
        if isinstance(answer, torch.Tensor):
            answer = answer.detach()
        numbers = np.asarray(answer, float)
    except (TypeError, ValueError):
        raise Wrong(f"It should hold numbers, and is {answer!r}.") from None
    require(count in (None, numbers.size), f"It should hold {count} numbers, not {numbers.size}.")
    return numbers


def near(answer, wanted):
    return np.allclose(answer, wanted, rtol=1e-3, atol=1e-6)


def round_trip(params, bits, range_=None):
    codes, scale, zero = asymmetric_quantization(params, bits, range=range_)
    return asymmetric_dequantize(codes, scale, zero)


def scale_and_zero_point(scale, zero_point):
    scale, zero_point = real(scale, "scale"), real(zero_point, "zero_point")
    require(not near(scale, 4 / 16), "16 codes have only 15 steps between them.")
    require(near(scale, 4 / 15), "The scale is the width of the range, divided by its steps.")
    require(zero_point >= 0, "Mind the sign: the zero point is a code, and codes start at 0.")
    require(zero_point == int(zero_point), "The zero point is a code: an integer.")
    require(zero_point != 3, "Round to the nearest integer, not down.")
    require(zero_point == 4, "How many steps is it from the low end to 0?")


def codes_of_torch(quantize):
    rng = np.random.default_rng(0)
    scale, zero = np.float32(0.013), 27
    ties = (rng.integers(-60, 300, 100_000) + 0.5).astype(np.float32) * scale
    given = ties.copy()
    codes = reals(quantize(ties, scale, zero, 8), ties.size).ravel()
    require(np.array_equal(ties, given), "Your function changes the array that it is given.")
    require((codes == np.rint(codes)).all(), "Codes are integers.")
    require(codes.min() >= 0 and codes.max() <= 255, "Some codes are not from 0 to 255.")
    back = torch.fake_quantize_per_tensor_affine(torch.tensor(ties), float(scale), zero, 0, 255)
    off = np.sum(codes != np.rint(back.numpy() / scale) + zero)
    inverse, z = np.float32(1) / scale, np.float32(zero)
    hints = {
        "divide once, 1 / s, and multiply by that": np.rint(ties / scale) + z,
        "add z after rounding": np.rint(ties * inverse + z),
        "multiply by 1 / s, and add z after rounding": np.rint(ties / scale + z),
        "round half to even": np.floor(ties * inverse + np.float32(0.5)) + z,
    }
    for hint, mistaken in hints.items():
        same = np.array_equal(codes, np.clip(mistaken, 0, 255))
        require(not same or not off, f"{off:,} of 100,000 codes are not PyTorch's: {hint}.")
    require(not off, f"{off:,} of 100,000 codes are not PyTorch's.")
    few = reals(quantize(ties, scale, zero, 4))
    require(few.max() <= 15, "With bits=4 the codes should end at 15.")


def worse_with_more_bits(numbers):
    numbers = reals(numbers)
    require(numbers.size > 0, "It should hold at least one number.")
    seven, eight = (quantization_error(numbers, round_trip(numbers, bits)) for bits in (7, 8))
    require(eight > seven, f"The error is {seven:.3g} with 7 bits and {eight:.3g} with 8. Which "
            "numbers have no error at all with 7 bits?")  # fmt: skip


def codes_in_use(count):
    count = real(count, "codes")
    require(count != 16, "16 codes cover 0 to 9. How many of their levels are near 0 to 1?")
    require(count != 2, "The step is 0.6, and numbers close to 1 are nearer to 1.2 than to 0.6.")
    require(count == 3, "How wide is a step, and which levels are nearest to 0, ..., 1?")


def bits_per_weight(bits):
    bits = real(bits, "bits")
    require(bits != 4, "The scales take space, too.")
    require(not near(bits, 4 + 2 / 128), "A scale takes 2 bytes, which is 16 bits.")
    require(bits < 16, "All 128 weights of a group share one scale.")
    require(bits == 4.125, "Divide the bits of a group, with its scale, by its weights.")


def absolute_range(range_of):
    sample = np.random.default_rng(6).laplace(size=2000)
    parts = np.linspace(1, 1 / 25, 25)
    for bits in (4, 3):

        def loss(range_, bits=bits):
            return np.mean(np.abs(sample - round_trip(sample, bits, range_)))

        low, high = reals(range_of(sample, bits), 2)
        require(low < high, f"It should return (low, high), and returned ({low:.3}, {high:.3}).")
        ends = sample.min(), sample.max()
        all_ranges = [(ends[0] * a, ends[1] * b) for a in parts for b in parts]
        best = min(map(loss, all_ranges))
        squared = min(
            all_ranges, key=lambda r: quantization_error(sample, round_trip(sample, bits, r))
        )
        yours = loss((low, high))
        told = f"With {bits} bits its mean absolute error is {yours:.4f}, the least {best:.4f}."
        require(not near((low, high), squared), f"{told} It is the range of least squared error.")
        require(yours <= 1.05 * best, told)


def moving_average(low, high):
    ends = real(low, "low"), real(high, "high")
    require(not near(ends, (-3, 4)), "These are the farthest numbers: a min-max observer's.")
    require(not near(ends, (-2, 3)), "This is the plain mean of both batches: c would be 0.5.")
    require(not near(ends, (-2.8, 3.8)), "The other way round: c is the weight of what is new.")
    require(near(ends, (-1.2, 2.2)), "Each end moves by c times its distance from the new end.")


def folded_batch_norm(fold):
    torch.manual_seed(0)
    layer, norm = torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4, eps=0.1).eval()
    for numbers, low in [(norm.running_mean, -2), (norm.running_var, 0.1), (norm.weight, -1)]:
        torch.nn.init.uniform_(numbers, low, 2)
    torch.nn.init.uniform_(norm.bias, -1, 1)
    x = torch.randn(100, 5)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        answer = fold(layer, norm)
        require(isinstance(answer, tuple) and len(answer) == 2, "Return the weight and the bias.")
        weight, bias = (torch.as_tensor(reals(part)).float() for part in answer)
        require(torch.equal(before, layer.weight), "Your function changes the layer's weight.")
        require(weight.shape == (4, 5), f"The weight has the shape {tuple(weight.shape)}.")
        require(bias.shape == (4,), f"The bias has the shape {tuple(bias.shape)}.")
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        right = factor[:, None] * layer.weight
        mistakes = {
            "Add eps to the variance.":
                right * torch.sqrt(1 + norm.eps / norm.running_var)[:, None],
            "Divide by the standard deviation, which is the root of the variance.":
                norm.weight[:, None] * layer.weight / (norm.running_var + norm.eps)[:, None],
        }  # fmt: skip
        for hint, mistaken in mistakes.items():
            require(not torch.allclose(weight, mistaken, atol=1e-5), hint)
        require(torch.allclose(weight, right, atol=1e-5), "The weight is not right.")
        forgotten = norm.bias - factor * norm.running_mean
        require(not torch.allclose(bias, forgotten + layer.bias, atol=1e-5),
                "The weight is right. BatchNorm scales the layer's own bias, too.")  # fmt: skip
        require(not torch.allclose(bias, forgotten, atol=1e-5),
                "The weight is right. The layer has a bias of its own.")  # fmt: skip
        folded = torch.nn.functional.linear(x, weight, bias)
        require(torch.allclose(folded, norm(layer(x)), atol=1e-4),
                "The weight is right, the bias isn't.")  # fmt: skip


def three_bits(quantized, net, data):
    require(hasattr(quantized, "graph"), "It should be what quantize_model returns.")
    parts = parts_with_bits(quantized)
    for name in parts_with_bits(quantize_model(net, [data.train_images[:10]])):
        require(name in parts, f"{name} leaves its numbers in floats.")
        allowed = 8 if name == "quantize_linear3" else 3
        bits = parts[name]
        require(bits <= allowed, f"{name} has {bits} bits; {allowed} are allowed.")
    lost = 100 * (test(net, data) - test(quantized, data))
    require(lost <= 0.5, f"It loses {lost:.2f} points; 0.5 are allowed.")


def parts_with_bits(quantized):
    """The bits of each layer's weights and of each activation, by its name in the graph."""
    parts = (QuantizedLayer, QuantizedActivation)
    return {n: p.bits for n, p in quantized.graph.named_modules() if isinstance(p, parts)}


def straight_through_gradient(gradient):
    gradient = reals(gradient, 5)
    require(set(gradient) <= {0, 1}, "Each is 0 or 1: the number is clipped, or it is not.")
    require(not near(gradient, (0, 0, 1, 0, 0)), "The clamp cuts off codes, after rounding: what "
            "code has -2.4, and what code has 1.4?")  # fmt: skip
    require(gradient.any(), "The estimator leaves out the rounding, whose slope is 0.")
    require(near(gradient, (0, 1, 1, 1, 0)), "Round each number. Is its code one of -2, ..., 1?")


def gradient_of_the_scale(gradient):
    gradient = reals(gradient, 4)
    require(not near(gradient, (-2, 0.3, -0.4, 1)), "Mind the sign within the range: it is the "
            "rounded number less the number.")  # fmt: skip
    require(not near(gradient, (0, -0.3, 0.4, 0)), "Beyond the range the result is s times the "
            "last code, so it moves with s.")  # fmt: skip
    require(near(gradient, (-2, -0.3, 0.4, 1)), "Within: round(x/s) - x/s. Beyond: the last code.")


def straight_through_by_detach(fake_quantize):
    numbers = torch.tensor(np.random.default_rng(7).normal(0, 1.5, 10_000), dtype=torch.float32)
    scale, zero, low, high = 0.3, 5, 0, 15
    results = []
    for function in (
        fake_quantize,
        lambda *arguments: torch.fake_quantize_per_tensor_affine(*arguments),
    ):
        x = numbers.clone().requires_grad_()
        y = function(x, scale, zero, low, high)
        require(isinstance(y, torch.Tensor), f"It should return a tensor, and returned {y!r}.")
        require(y.requires_grad, "The result has lost its gradient: detach a part of it only.")
        y.sum().backward()
        results.append((y.detach(), x.grad))
    (values, gradient), (their_values, their_gradient) = results
    # A code next to a tie may fall to the other side: the sum that carries the gradient is rounded.
    off = ((values - their_values).abs() > scale / 100).double().mean().item()
    require(off < 0.001, f"{off:.1%} of the values are not those of PyTorch's kernel.")
    require(gradient.any(), "The gradient is 0: it goes through round. Detach what round changes.")
    clipped = their_gradient == 0
    require(not (gradient[clipped].all() and clipped.any()), "The gradient passes where the number "
            "is clipped: clamp outside of what you detach.")  # fmt: skip
    off = ((gradient - their_gradient).abs() > 0.01).double().mean().item()
    require(off < 0.001, f"{off:.1%} of the gradients are not those of PyTorch's kernel.")


def longest_sum_in_16_bits(count):
    count = real(count, "longest")
    require(count != 18, "The largest product is 255 times -8, and not 255 times 7.")
    require(count not in (32, 17, 33), "Signed 16-bit integers end at 32,767; a part of a product "
            "doesn't fit.")  # fmt: skip
    require(count == 16, "How often does the largest product fit into 32,767?")


def fixed_point_product(multiply):
    acc = np.array([1, 3, 5, -1, -3, 100, -100, 2_000_000, -2_000_000], np.int32)
    for M_0, shift in [(2**30, 31), (1_484_674_521, 42), (1_700_000_003, 33)]:
        codes = multiply(acc, M_0, shift)
        require(codes is not None, "It is None: does your function return something?")
        codes = np.asarray(codes)
        require(codes.dtype.kind == "i", f"The result has the type {codes.dtype}: a float came in.")
        exact = [int(n) * M_0 for n in acc]
        wanted = np.array([(n + (1 << (shift - 1))) >> shift for n in exact])
        down = np.array([n >> shift for n in exact])
        require(np.array_equal(down, wanted) or not np.array_equal(codes, down),
                "It rounds down: add half a unit before you shift.")  # fmt: skip
        even = np.rint([n / 2**shift for n in exact])
        require(np.array_equal(even, wanted) or not np.array_equal(codes, even),
                "It rounds halves to even, as floats do. Add half a unit and shift.")  # fmt: skip
        require(np.array_equal(codes, wanted), f"{acc[codes != wanted][:1]} times {M_0:,}, "
                f"shifted by {shift}, is not right. Does the product fit its type?")  # fmt: skip


def largest_saturation(inputs, weights):
    inputs, weights = reals(inputs, 2), reals(weights, 2)
    require(((inputs >= 0) & (inputs <= 255)).all(), "Input codes are 0 to 255.")
    require(((weights >= -128) & (weights <= 127)).all(), "Weight codes are -128 to 127.")
    exact = float(inputs @ weights)
    lost = abs(exact - min(max(exact, -(2**15)), 2**15 - 1))
    require(lost > 0, f"Their sum is {exact:,.0f}, and 16 bits hold that.")
    require(lost == 32_512, f"16 bits lose {lost:,.0f} of it. More is possible.")


def bytes_of_the_file(count):
    count = real(count, "bytes")
    require(count != 89_400, "A bias for each of the 210 outputs, and a scale for each of them.")
    require(count not in (89_610, 90_450), "A bias is an int32, which takes 4 bytes.")
    require(count != 90_240, "Biases and scales: 4 bytes each, 210 of both.")
    require(count != 359_280, "A weight takes one byte.")
    require(count == 91_080, "Weights 1 byte each; 210 biases and 210 scales 4 bytes each.")


def standard_error(error_of):
    hint = "It is the root of p (1 - p) / n, in points."
    for accuracy, images in [(0.974, 10_000), (0.5, 100), (0.9, 360)]:
        error = real(error_of(accuracy, images), "The result")
        right = 100 * np.sqrt(accuracy * (1 - accuracy) / images)
        require(not near(100 * error, right), "It is right, but not in points: 1 point is 0.01.")
        require(not near(error, right / 10), "One of the factors is under the root, and one isn't.")
        require(not near(error, right**2 / 100), "This is the variance. Take the root.")
        require(near(error, right), hint)


CHECKS = {
    "1.1": scale_and_zero_point,
    "1.2": codes_of_torch,
    "1.3": worse_with_more_bits,
    "2.1": codes_in_use,
    "2.2": bits_per_weight,
    "2.3": absolute_range,
    "3.1": moving_average,
    "3.2": folded_batch_norm,
    "3.3": three_bits,
    "4.1": straight_through_gradient,
    "4.2": gradient_of_the_scale,
    "4.3": straight_through_by_detach,
    "5.1": longest_sum_in_16_bits,
    "5.2": fixed_point_product,
    "5.3": largest_saturation,
    "6.1": bytes_of_the_file,
    "6.2": standard_error,
}
