"""Wrong answers to the exercises, each with the words of the hint that it should get."""

ROUND = "def your_quantize(x, scale, zero_point, bits):\n    "
CLIP = "np.clip({}, 0, 2**bits - 1)"
FOLD = (
    "def fold(layer, norm):\n    factor = norm.weight / (norm.running_var + norm.eps).sqrt()\n    "
)
STE = "def your_fake_quantize(x, scale, zero_point, quant_min, quant_max):\n    "
CODES = "codes = (torch.round(x / scale) + zero_point).clamp(quant_min, quant_max)\n    "
CLAMPED = (
    "steps = (x / scale).clamp(quant_min - zero_point, quant_max - zero_point)\n"
    "    rounded = torch.round(steps)\n    "
)
MULTIPLY = "def multiply(acc, M_0, shift):\n    "
WORST = "worst_inputs, worst_weights = "
SEARCH = (
    "def absolute_range(params, bits):\n"
    "    def loss(range_):\n"
    "        quantized = qhelpers.asymmetric_quantization(params, {}, range=range_)\n"
    "        off = params - qhelpers.asymmetric_dequantize(*quantized)\n"
    "        return {}\n"
    "    parts, low, high = np.linspace(1, 0.04, 25), params.min(), params.max()\n"
    "    return min([(low * a, high * b) for a in parts for b in parts], key=loss)"
)
DIFFERENCE = """def error_of_difference(first, second, images):
    v1, v2 = first * (1 - first) / images, second * (1 - second) / images
"""
PTQ = (
    "your_network = qhelpers.quantize_model(exercise_net, [exercise_data.train_images[:1000]], {})"
)
HAND_OVER = (
    "def hand_over(weight, H, j, error):\n"
    "    weight, rest = weight.clone(), slice(j + 1, None)\n    "
)
SHARE = "share = torch.linalg.solve(H[rest, rest], H[rest, j])\n    "
MOVE = "weight[:, rest] -= torch.outer(error, {})\n    return weight"
SHARES = "def shares_of(H):\n    P = torch.linalg.inv(H)\n    return "
FACTOR = "torch.linalg.cholesky({}, upper=True)"
BAD = "bad_images = exercise_data.train_images{}"
THREE = "as_e4m3, as_e5m2, small = {}"
SCALE_CODE = (
    "def scale_code(block, largest_exponent):\n"
    "    top = np.abs(block).max()\n"
    "    if top == 0:\n"
    "        return 0\n    "
)
EXPONENT = "(np.frexp(top)[1] - 1)"
CLIPPED = "np.clip({}, 0, 254)"
SIZES = "numbers = 8192 * 80 * 2 * 8 * 128\nbytes_in_16_bits, bytes_in_4_bits = {}"
SMOOTH = (
    "def scales_of(x, matrices, a):\n    w = torch.cat(matrices)\n"
    "    top_x, top_w = x.abs().amax(dim=0), w.abs().amax(dim=0)\n    return {}"
)
RUINED = "ruined = {!r}"
TURNED = "bad_input = exercise_rotation[:, 0]{}"
# Wrong answers, each with a part of the hint that it must get.
WRONG = {
    "1.1": [
        ("your_scale, your_zero_point = 0.25, 4", "15 steps"),
        ("your_scale, your_zero_point = 0.43, 8", "Signed codes"),
        ("your_scale, your_zero_point = 3.75, 4", "How wide is one"),
        ("your_scale, your_zero_point = 0.26, 4", "two digits or more"),
        ("your_scale, your_zero_point = 0.3, 4", "two digits or more"),
        ("your_scale, your_zero_point = 4, 4", "width of the range"),
        ("your_scale, your_zero_point = 0.27, -1", "is β"),
        ("your_scale, your_zero_point = 0.267, -4", "sign"),
        ("your_scale, your_zero_point = 4 / 15, 3.75", "an integer"),
        ("your_scale, your_zero_point = 4 / 15, 3", "not down"),
        ("your_scale, your_zero_point = 4 / 15, 11", "from the low end"),
        ("your_scale, your_zero_point = 'wide', 4", "should be a number"),
    ],
    "1.2": [
        (ROUND + f"return {CLIP.format('np.rint(x / scale) + zero_point')}", "s: divide once, "
         "1 / s, and multiply by that."),
        (ROUND + f"return {CLIP.format('np.rint(x * (1 / scale) + np.float32(zero_point))')}",
         "s: add z after rounding."),
        (ROUND + f"return {CLIP.format('np.rint(x / scale + np.float32(zero_point))')}",
         "multiply by that; add z"),
        (ROUND + "halves_up = np.floor(x * (1 / scale) + np.float32(0.5))\n"
         f"    return {CLIP.format('halves_up + zero_point')}", "s: round half to even."),
        (ROUND + "steps = x * (1 / scale)\n"
         "    away = np.trunc(steps + np.copysign(np.float32(0.5), steps))\n"
         f"    return {CLIP.format('away + zero_point')}", "s: round half to even."),
        (ROUND + "return [min(max(round(float(v) / float(scale)) + zero_point, 0), 2**bits - 1) "
         "for v in x]", "64 bits of Python's floats."),
        (ROUND + "return [min(max(round(float(v) * (1 / float(scale))) + zero_point, 0), "
         "2**bits - 1) for v in x]", "64 bits of Python's floats."),
        (ROUND + f"return {CLIP.format('np.round(x.astype(float) * (1 / scale)) + zero_point')}",
         "64 bits of Python's floats."),
        (ROUND + "return [min(max(int(v * (1 / scale)) + zero_point, 0), 2**bits - 1) for v in x]",
         "s: round to the nearest integer."),
        (ROUND + f"return {CLIP.format('np.floor(x * (1 / scale)) + zero_point')}",
         "s: round to the nearest integer."),
        (ROUND + "return (np.rint(x * (1 / scale)) + zero_point).astype(int) % 256",
         "256 becomes 0"),
        (ROUND + "return (np.rint(x / scale) + zero_point).astype(int).astype(np.uint8)",
         "256 becomes 0"),
        (ROUND + f"return {CLIP.format('x * (1 / scale) + zero_point')}", "some of yours aren't"),
        (ROUND + f"return {CLIP.format('np.rint(x * (1 / scale)) + zero_point + 1')}",
         "yours is 198, PyTorch's 197."),
        (ROUND + "x *= 1 / scale\n    return np.clip(np.rint(x) + zero_point, 0, 2**bits - 1)",
         "changes the array"),
        (ROUND + "return np.rint(x * (1 / scale)) + zero_point", "0 to 255: clamp"),
        (ROUND + "return np.clip(np.rint(x * (1 / scale)) + zero_point, 0, 255)", "end at 15"),
        (ROUND + "return np.clip(np.rint(x * (1 / scale)) + zero_point, 0, 255) // 2**(8 - bits)",
         "with bits=4 they aren't"),
        (ROUND + "torch.round(torch.tensor(x))", "return something"),
        (ROUND + "return x.no_such_thing", "AttributeError"),
    ],
    "1.3": [
        ("your_numbers = [0, 1, 255]", "no error at all"),
        ("your_numbers = [0, 1]", "a level only with 7"),
        ("your_numbers = []", "at least one"),
    ],
    "2.1": [
        ("codes_in_use = 16", "16 codes cover"),
        ("codes_in_use = 15", "15 codes are left"),
        ("codes_in_use = 256", "here are 4 bits"),
        ("codes_in_use = 2", "nearer to 1.2"),
        ("codes_in_use = 1", "near 0.6"),
        ("codes_in_use = 4", "the code of 9"),
        ("codes_in_use = 1 / 0.6", "a whole number"),
        ("codes_in_use = 7", "How wide is a step"),
    ],
    "2.2": [
        ("bits_per_weight = 4", "take space"),
        ("bits_per_weight = 4 + 2 / 32", "16 bits"),
        ("bits_per_weight = 4.06", "2 bytes, which is"),
        ("bits_per_weight = 4 + 32 / 32", "not 32"),
        ("bits_per_weight = 16 / 32", "its own 4 bits"),
        ("bits_per_weight = (4 + 16 / 32) / 8", "in bytes"),
        ("bits_per_weight = 4 * 32 + 16", "a whole group"),
        ("bits_per_weight = 4 + 32 / 16", "the other way"),
        ("bits_per_weight = 4 + 16", "share one"),
        ("bits_per_weight = 4.25", "Divide the bits of a group"),
    ],
    "2.3": [
        ("def absolute_range(params, bits):\n"
         "    return qhelpers.min_max_range(params)", "range of min-max"),
        ("def absolute_range(params, bits):\n    return 1, -1", "(low, high)"),
        ("def absolute_range(params, bits):\n    return 0.5", "2 numbers"),
        ("def absolute_range(params, bits):\n    return 0.4, 0.6", "not their fractions"),
        ("def absolute_range(params, bits):\n    params *= 0.5\n    return -1, 1", "changes"),
        ("def absolute_range(params, bits):\n    return -10, 10", "mean absolute error is"),
        (SEARCH.format("4", "np.mean(np.abs(off))"), "pass `bits` on"),
        (SEARCH.format("bits", "np.mean(off**2)"), "squared error"),
        (SEARCH.format("bits", "abs(np.mean(off))"), "cancel"),
        (SEARCH.format("bits", "np.mean(off)"), "cancel"),
        (SEARCH.format("bits", "np.max(np.abs(off))"), "largest error"),
    ],
    "3.1": [
        ("low, high = -3, 4", "min-max"),
        ("low, high = -2, 3", "plain mean"),
        ("low, high = -2.8, 3.8", "other way round"),
        ("low, high = -1 + 0.1 * -3, 2 + 0.1 * 4", "times the distance"),
        ("low, high = -1 + 0.1 * (3 - 1), 2 + 0.1 * (2 - 4)", "wrong sign"),
        ("low, high = -1.1, 2.1", "Each end moves"),
    ],
    "3.2": [
        (FOLD + "return layer.weight * factor, layer.bias", "factor[:, None]"),
        (FOLD + "return layer.weight @ factor, layer.bias", "RuntimeError"),
        (FOLD + "return layer.weight * factor[:, None]", "Return the weight and the bias"),
        (FOLD + "return layer.weight, layer.bias", "The weight is not right"),
        (FOLD + "factor = norm.weight / (norm.running_var + norm.eps)\n"
         "    return layer.weight * factor[:, None], layer.bias", "the root of the variance"),
        (FOLD + "return (layer.weight * factor[:, None], "
         "norm.bias + factor * (layer.bias + norm.running_mean))", "subtracts the running mean"),
        (FOLD + "return (layer.weight * factor[:, None], "
         "factor * (layer.bias - norm.running_mean))", "ends by adding a bias"),
        (FOLD + "return layer.weight * factor[:, None], layer.bias", "the bias isn't"),
        (FOLD + "layer.bias.mul_(factor)\n    return layer.weight * factor[:, None], layer.bias",
         "changes the layer's bias"),
        (FOLD + "return layer.weight * factor[:, None], norm.bias - factor * norm.running_mean",
         "a bias of its own"),
        (FOLD + "return (layer.weight * factor[:, None], "
         "norm.bias + layer.bias - factor * norm.running_mean)", "scales the layer's own bias"),
        (FOLD + "factor = norm.weight / norm.running_var.sqrt()\n"
         "    return layer.weight * factor[:, None], layer.bias", "Add eps"),
        (FOLD + "layer.weight.mul_(factor[:, None])\n    return layer.weight, layer.bias",
         "changes the layer's weight"),
    ],
    "3.3": [
        (PTQ.format(4), "3 are allowed"),
        (PTQ.format("3, None"), "in floats"),
        (PTQ.format("2, 2"), "points; 0.5"),
        ("your_network = exercise_net", "quantize_model returns"),
    ],
    "4.1": [
        ("gradient = [0, 0, 1, 0, 0]", "after rounding"),
        ("gradient = [0, 0, 0, 0, 0]", "leaves out the rounding"),
        ("gradient = [1, 1, 1, 1, 1]", "which are not among"),
        ("gradient = [True, False, False, False, True]", "other way round"),
        ("gradient = [-2, -2, 0, 1, 1]", "the quantized numbers"),
        ("gradient = np.array([-1, 1, 1, 1, -1])", "0 or 1"),
        ("gradient = [0, 1, 1, 0, 0]", "Is its code one of"),
        ("gradient = [0, 1, 1]", "5 numbers"),
    ],
    "4.2": [
        ("gradient = [-2, 0.3, -0.4, 1]", "sign"),
        ("gradient = [0, -0.3, 0.4, 0]", "moves with s"),
        ("gradient = [3, -0.3, 0.4, -6]", "x is not in it"),
        ("gradient = [-2, 0, 1, 1]", "These are the codes"),
        ("gradient = [-2, 0, 0, 1]", "Only the backward pass"),
        ("gradient = torch.tensor([2, -0.3, 0.4, 1])", "Beyond: the last code"),
    ],
    "4.3": [
        (STE + CODES + "return (codes - zero_point) * scale", "goes through round"),
        (STE + CODES + "return x + ((codes - zero_point) * scale - x).detach()", "clamp outside"),
        (STE + CODES + "return x + (codes - x).detach()", "These are the codes"),
        (STE + CODES + "return x.detach()", "lost its gradient"),
        (STE + CODES + "return x.detach().numpy()", "should return a tensor"),
        (STE + CODES + "x + (codes - x).detach()", "return something"),
        (STE + "return x + 0", "values are not"),
        (STE + "codes = torch.round(x / scale).clamp(quant_min, quant_max)\n"
         "    return x + (codes * scale - x).detach()", "Add it before the clamp"),
        (STE + "return x + (torch.round(x / scale) * scale - x).detach()", "not clipped"),
        (STE + CLAMPED + "return steps + (rounded * scale - steps).detach()", "and should be 1"),
        (STE + CLAMPED + "return (steps + (rounded - steps).detach()) * scale", "half a step more"),
        (STE + CLAMPED + "wider = (x / scale).clamp(quant_min - zero_point - 1, "
         "quant_max - zero_point + 1)\n    return (wider + (rounded - wider).detach()) * scale",
         "of the gradients are not"),
    ],
    "5.1": [
        ("longest = 32_767 // (255 * 7)", "times -8"),
        ("longest = 32_767 / (255 * 7)", "times -8"),
        ("longest = 65_535 // (255 * 8)", "32,767"),
        ("longest = 32_767 // (256 * 8)", "not at 256"),
        ("longest = 32_767 // (255 * 128)", "have 4"),
        ("longest = 32_767 / (255 * 8)", "Round down"),
        ("longest = 17", "Round down"),
        ("longest = 784", "How often"),
    ],
    "5.2": [
        (MULTIPLY + "return acc.astype(np.int64) * M_0 >> shift", "rounds down"),
        (MULTIPLY + "return acc.astype(np.int64) * M_0 + (1 << shift) >> shift", "a whole unit"),
        (MULTIPLY + "return (acc * M_0 + (1 << (shift - 1))) >> shift", "int64 first"),
        (MULTIPLY + "return acc * M_0 >> shift", "int64 first"),
        (MULTIPLY + "return (acc.astype(np.int64) * M_0 + 1 << shift - 1) >> shift", "brackets"),
        (MULTIPLY + "return (acc * (M_0 / 2**shift) + 0.5).astype(int)", "towards 0"),
        (MULTIPLY + "return (acc * (M_0 / 2**shift)).astype(int)", "cuts off towards 0. Add"),
        (MULTIPLY + "return np.rint(acc * (M_0 / 2**shift))", "a float came in"),
        (MULTIPLY + "return np.rint(acc * (M_0 / 2**shift)).astype(int)", "halves to even"),
        (MULTIPLY + "return (acc.astype(np.int64) * M_0)[0] >> shift", "the shape ()"),
        (MULTIPLY + "return acc.astype(np.int64)", "is 2, and not"),
        (MULTIPLY + "acc.astype(np.int64) * M_0 >> shift", "return something"),
    ],
    "5.3": [
        (WORST + "[255, 255], [127, 127]", "the other side of 0"),
        (WORST + "[255, 255], [-127, -128]", "lose 32,257 of it. More"),
        (WORST + "[255, 255], [127, -128]", "cancel"),
        (WORST + "[1, 1], [1, 1]", "16 bits hold that"),
        (WORST + "[256, 255], [127, 127]", "0 to 255"),
        (WORST + "[255, 255], [128, 128]", "-128 to 127"),
        (WORST + "[254.5, 255], [-128, -128]", "are integers"),
        (WORST + "255, -128", "2 numbers"),
    ],
    "5.4": [
        ("packed_byte = 0b01_11_00_10", "in the highest bits"),
        ("packed_byte = 1 | (-1 & 255) << 2 & 255 | (-2 & 255) << 6 & 255", "Mask first"),
        ("packed_byte = 3 | 1 << 2 | 2 << 4", "added 2"),
        ("packed_byte = np.array(0b10_00_11_01, np.uint8).view(np.int8)", "as signed"),
        ("packed_byte = 1 + 2 * 4 + 0 * 16 + 2 * 64", "Which two bits has -1"),
        ("packed_byte = 1 + 3 * 4 + 0 * 16 + 3 * 64", "Which two bits has -1"),
        ("packed_byte = 10001101", "begins with 0b"),
        ("packed_byte = '10001101'", "begins with 0b"),
        ("packed_byte = 4", "from right to left"),
    ],
    "6.1": [
        ("bytes_of_numbers = 89_400", "a bias and a scale for each"),
        ("bytes_of_numbers = 89_400 + 210", "takes 4 bytes"),
        ("bytes_of_numbers = 89_400 + 210 + 210", "takes 4 bytes"),
        ("bytes_of_numbers = 89_400 + 210 * 4 + 210", "takes 4 bytes"),
        ("bytes_of_numbers = 90_240", "210 biases and 210 scales"),
        ("bytes_of_numbers = 89_400 + 210 * 4 + 3 * 4", "one scale for each"),
        ("bytes_of_numbers = 89_400 + 210 * 4 + 4", "one scale for each"),
        ("bytes_of_numbers = (89_400 + 210) * 4", "takes one byte"),
        ("bytes_of_numbers = (89_400 + 210 + 210) * 4", "takes one byte"),
        ("bytes_of_numbers = 91_080 * 8", "bits"),
        ("bytes_of_numbers = 91.08", "kilobytes"),
        ("bytes_of_numbers = 91.1", "kilobytes"),
        ("bytes_of_numbers = '91 kB'", "should be a number"),
        ("bytes_of_numbers = 91_000", "4 bytes each"),
    ],
    "6.2": [
        (DIFFERENCE + "    return (v1 + v2) ** 0.5", "not in points"),
        (DIFFERENCE + "    return (100 * (v1 + v2)) ** 0.5", "outside the root"),
        (DIFFERENCE + "    return 100 * (v1 + v2)", "Take the root"),
        (DIFFERENCE + "    return 100 * np.sqrt(v1)", "the error of one accuracy"),
        (DIFFERENCE + "    return 100 * np.sqrt(v2)", "the error of one accuracy"),
        (DIFFERENCE + "    return 100 * np.sqrt(v1) + 100 * np.sqrt(v2)", "errors don't"),
        (DIFFERENCE + "    return 100 * np.sqrt(v1 - v2)", "in a difference, too"),
        (DIFFERENCE + "    return 100 * np.sqrt((v1 + v2) / 2)", "images of its own"),
        (DIFFERENCE + "    return 100 * np.sqrt(2 * v1)", "its own variance"),
        (DIFFERENCE + "    return 100 * np.sqrt((first + second) * (1 - (first + second) / 2)"
         " / images)", "its own variance"),
        (DIFFERENCE + "    return 100 * np.sqrt(v1 + v2) / 3", "the sum of both variances"),
        (DIFFERENCE + "    100 * np.sqrt(v1 + v2)", "should be a number"),
    ],
    "7.1": [
        ("aim, codes_of_two = 0.84, [0, 1]", "H_12 is negative"),
        ("aim, codes_of_two = -0.24, [0, 0]", "Add it to where"),
        ("aim, codes_of_two = 0.24, [0, 0]", "Add it to where"),
        ("aim, codes_of_two = 0.6, [0, 1]", "no longer aims at"),
        ("aim, codes_of_two = 0.04, [0, 0]", "the distance of the first"),
        ("aim, codes_of_two = 0.5, [0, 0]", "What is e_1"),
        ("aim, codes_of_two = 0.36, [0, 1]", "Which level is nearest to it"),
        ("aim, codes_of_two = 0.36, [1, 0]", "goes to its nearest level"),
        ("aim, codes_of_two = 0.36, 0", "2 numbers"),
        ("aim, codes_of_two = 'up', [0, 0]", "should be a number"),
    ],
    "7.2": [
        (HAND_OVER + SHARE + MOVE.format("-share"), "the wrong way"),
        (HAND_OVER + MOVE.format("H[rest, j] / H[j, j]"), "the only one that is left"),
        (HAND_OVER + MOVE.format("H[rest, j] / H.diagonal()[rest]"), "the only one that is left"),
        (HAND_OVER + MOVE.format("H[rest, j]"), "solve for the part"),
        (HAND_OVER + MOVE.format("H[rest, rest] @ H[rest, j]"), "Multiply by the inverse"),
        (HAND_OVER + "P = torch.linalg.inv(H)\n    " + MOVE.format("-P[rest, j] / P[j, j]"),
         "leave them out before you invert"),
        (HAND_OVER + SHARE + MOVE.format("2 * share"), "For j = 0 the columns"),
        (HAND_OVER + SHARE + "weight[:, j] += error\n    " + MOVE.format("share"),
         "should stay as they are"),
        (HAND_OVER.replace(".clone()", "") + SHARE + MOVE.format("share"), "changes the weight"),
        (HAND_OVER + "return weight", "as it was"),
        (HAND_OVER + "return weight[:, rest]", "returns the shape (3, 4)"),
        (HAND_OVER + SHARE + "weight[:, rest] -= error * share", "RuntimeError"),
        (HAND_OVER + SHARE + MOVE.format("share").replace("return ", ""), "return something"),
    ],
    "7.3": [
        (SHARES + FACTOR.format("P"), "Divide each row by"),
        (SHARES + "-" + FACTOR.format("P"), "Divide each row by"),
        (SHARES + "-torch.linalg.cholesky(P)", "take the upper factor"),
        (SHARES + f"(U := {FACTOR.format('P')}) / U.diagonal()[:, None]", "wrong sign"),
        (SHARES + f"-(U := {FACTOR.format('P')}) / U.diagonal()", "not each column"),
        (SHARES + f"(U := {FACTOR.format('P')}) / U.diagonal()", "not each column"),
        (SHARES + f"-(U := {FACTOR.format('H')}) / U.diagonal()[:, None]", "Factorise its inverse"),
        (SHARES + f"(U := {FACTOR.format('H')}) / U.diagonal()[:, None]", "Factorise its inverse"),
        (SHARES + "-P / P.diagonal()[:, None]", "still count the rows"),
        (SHARES + "P", "Compare row 0"),
        (SHARES + "P[0]", "returns the shape (6,)"),
    ],
    "7.4": [
        (BAD.format("[:100]"), "On test images GPTQ has"),
        (BAD.format("[:10]"), "take 100 or more"),
        (BAD.format("[:10].repeat(100, 1, 1, 1)"), "are different"),
        (BAD.format("[:100].reshape(100, 784)"), "have the shape"),
        ("bad_images = 1", "a tensor of images"),
    ],
    "8.1": [
        (THREE.format("-0.3125, -0.8125, 0.0059"), "in the other order"),
        (THREE.format("0.8125, 0.3125, 0.0059"), "is the sign"),
        (THREE.format("-0.8125, 0.3125, 0.0059"), "is the sign"),
        (THREE.format("-0.3125, -0.3125, 0.0059"), "isn't stored"),
        (THREE.format("-0.8125, -0.0625, 0.0059"), "isn't stored"),
        (THREE.format("-104, -10240, 0.0059"), "Subtract the bias"),
        (THREE.format("-0.40625, -0.3125, 0.0059"), "bias of E4M3"),
        (THREE.format("-0.8125, -80, 0.0059"), "bias of E5M2"),
        (THREE.format("-75, -75, 3"), "4 bits of exponent"),
        (THREE.format("-0.8125, -0.8125, 3"), "5 bits of exponent"),
        (THREE.format("-0.8125, -0.3125, 0.0107421875"), "no 1 stands in front"),
        (THREE.format("-0.8125, -0.3125, 0.0029296875"), "the same power of two as 0001"),
        (THREE.format("-0.81, -0.31, 3"), "third is subnormal"),
        (THREE.format("'minus', -0.3125, 3"), "should be a number"),
    ],
    "8.2": [
        (SCALE_CODE + f"return {EXPONENT} - largest_exponent", "is 127 more"),
        (SCALE_CODE + f"return 2.0 ** ({EXPONENT} - largest_exponent)", "That is the scale"),
        (SCALE_CODE + f"return {EXPONENT} + 127", "Subtract largest_exponent"),
        (SCALE_CODE + f"return {EXPONENT} + 1 - largest_exponent + 127", "logarithm down"),
        (SCALE_CODE + "return np.round(np.log2(top)) - largest_exponent + 127", "logarithm down"),
        (SCALE_CODE + "return np.floor(np.log2(top / 6)) + 127", "not by its largest number"),
        (SCALE_CODE.replace("np.abs(block)", "block")
         + f"return {EXPONENT} - largest_exponent + 127", "may be a negative number's"),
        (SCALE_CODE + "return " + CLIPPED.format("np.floor(np.log2(top)) - largest_exponent + 127"),
         "Just below 8"),
        (SCALE_CODE + f"return {EXPONENT} - largest_exponent + 127", "end at 0 and 254"),
        (SCALE_CODE + "return " + CLIPPED.format(f"{EXPONENT} - largest_exponent + 127").replace(
            "254", "255"), "end at 0 and 254"),
        (SCALE_CODE.replace("return 0", "return 127")
         + "return " + CLIPPED.format(f"{EXPONENT} - largest_exponent + 127"),
         "A block of zeros gets 127"),
        (SCALE_CODE + "return 127", "If the largest |x| is 0.05"),
        (SCALE_CODE + "block /= top\n    return 127", "changes the block"),
        (SCALE_CODE + "return np.zeros(32)", "one code for the block"),
        (SCALE_CODE + "return", "should be a number"),
        (SCALE_CODE + "return block.no_such_thing", "AttributeError"),
    ],
    "8.3": [
        ("bad_numbers = np.arange(32)", "hold 64 numbers"),
        ("bad_numbers = np.full(64, np.inf)", "must be finite"),
        ("bad_numbers = np.zeros(64)", "Zeros come back"),
        ("bad_numbers = np.full(64, 7.9e6)", "between 0.001"),
        ("bad_numbers = np.where(np.arange(64) % 32, 0.5, 6)", "int4 is the worse one"),
        ("bad_numbers = np.linspace(-7.9, 7.9, 64)", "From which largest"),
        ("bad_numbers = ['a'] * 64", "It should hold numbers"),
    ],
    "8.4": [
        ("bits_per_number = 4", "take space"),
        ("bits_per_number = 4.5", "a float32 for each block"),
        ("bits_per_number = 4 + 8 / 64", "share a scale, too"),
        ("bits_per_number = 4 + 8 / 64 + 32 / 256", "how many numbers are that"),
        ("bits_per_number = 4 + 8 / 64 + 32 / 64", "how many numbers are that"),
        ("bits_per_number = 8 / 64 + 32 / (64 * 256)", "Add the 4 bits"),
        ("bits_per_number = (4 + 8 / 64 + 32 / (64 * 256)) / 8", "in bytes"),
        ("bits_per_number = 4.13", "three digits"),
        ("bits_per_number = 'few'", "should be a number"),
    ],
    "9.1": [
        (SIZES.format("numbers * 16, numbers * 5 / 8"), "bytes, not bits"),
        (SIZES.format("numbers, numbers * 5 / 8"), "half of it"),
        (SIZES.format("numbers * 2 * 8, numbers * 5 / 8"), "not those of queries"),
        (SIZES.format("numbers * 2 / 80, numbers * 5 / 8"), "one layer"),
        (SIZES.format("numbers * 2 / 1e9, numbers * 5 / 8e9"), "in bytes"),
        (SIZES.format("numbers * 3, numbers * 5 / 8"), "tokens times layers"),
        (SIZES.format("numbers * 2, numbers / 2"), "count the scales"),
        (SIZES.format("numbers * 2, numbers * 4.5 / 8"), "a scale and a zero point"),
        (SIZES.format("numbers * 2, numbers * 5"), "The others are bits"),
        (SIZES.format("numbers * 2, numbers"), "How many bits does a number take"),
        (SIZES.format("'many', numbers"), "should be a number"),
    ],
    "9.2": [
        (SMOOTH.format("top_w ** (1 - a) / top_x**a"), "These are the inverse"),
        (SMOOTH.format("top_x ** (1 - a) / top_w**a"), "wrong way round"),
        (SMOOTH.format("top_x**a / top_w**a"), "exponent is 1 - a"),
        (SMOOTH.format("top_x**a * top_w ** (1 - a)"), "Divide by what comes"),
        (SMOOTH.format("top_x**a / top_w**2"), "isn't max|x|**a"),
        (SMOOTH.format("top_x**a"), "no say yet"),
        (SMOOTH.format("top_x**a / matrices[0].abs().amax(dim=0) ** (1 - a)"), "of both"),
        (SMOOTH.format("top_x**a / matrices[1].abs().amax(dim=0) ** (1 - a)"), "of both"),
        (SMOOTH.format("x.amax(dim=0).abs() ** a / w.amax(dim=0).abs() ** (1 - a)"),
         "absolute values"),
        (SMOOTH.format("x.abs().mean(dim=0) ** a / w.abs().mean(dim=0) ** (1 - a)"),
         "not the mean"),
        (SMOOTH.format("x.abs().amax(dim=1) ** a"), "one scale for each dimension"),
        (SMOOTH.format("None"), "return something"),
        (SMOOTH.format("x @ w"), "RuntimeError"),
    ],
    "9.3": [
        (RUINED.format("blk.1.ffn_gate.weight"), "all of its dimensions are large"),
        (RUINED.format("blk.1.ffn_up.weight"), "all of its dimensions are large"),
        (RUINED.format("blk.0.attn_q.weight"), "It is another one"),
        (RUINED.format("blk.1.ffn_down.weight"), "It is another one"),
        (RUINED.format("ffn_down"), "is no matrix of the model"),
        ("ruined = 0", "is no matrix of the model"),
    ],
    "9.4": [
        ("bad_input = 100 * torch.eye(64)[0] + 1", "gather in one dimension"),
        (TURNED.format(" * 10"), "some small noise"),
        ("bad_input = torch.sin(torch.arange(64.0))", "ten times"),
        ("bad_input = torch.zeros(64)", "not all of them 0"),
        ("bad_input = torch.full((64,), float('nan'))", "finite numbers"),
        ("bad_input = torch.ones(3)", "64 numbers"),
    ],
}  # fmt: skip
