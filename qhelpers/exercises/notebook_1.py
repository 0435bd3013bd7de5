"""What makes the answers to the exercises of notebook 1 right, with a hint for each mistake."""

import numpy as np
import torch

from qhelpers.affine import quantization_error
from qhelpers.exercises.answers import Wrong, mistake, near, real, reals, require, round_trip


def scale_and_zero_point(scale, zero_point):
    scale, zero_point = real(scale, "scale"), real(zero_point, "zero_point")
    mistake(near(scale, 4 / 16), "16 codes have only 15 steps between them.")
    require(near(scale, 4 / 15), "The scale is the width of the range, divided by its steps.")
    require(zero_point >= 0, "Mind the sign: the zero point is a code, and codes start at 0.")
    require(zero_point == int(zero_point), "The zero point is a code: an integer.")
    mistake(zero_point == 3, "Round to the nearest integer, not down.")
    require(zero_point == 4, "How many steps is it from the low end to 0?")


def same_codes_as_torch(quantize):
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
    if off:
        told = f"{off:,} of 100,000 codes are not PyTorch's"
        inverse, z = np.float32(1) / scale, np.float32(zero)

        def got(mistaken):
            return np.array_equal(codes, np.clip(mistaken, 0, 255))

        mistake(got(np.rint(ties / scale) + z),
                f"{told}: divide once, 1 / s, and multiply by that.")  # fmt: skip
        mistake(got(np.rint(ties * inverse + z)), f"{told}: add z after rounding.")
        mistake(got(np.rint(ties / scale + z)),
                f"{told}: multiply by 1 / s, and add z after rounding.")  # fmt: skip
        mistake(got(np.floor(ties * inverse + np.float32(0.5)) + z),
                f"{told}: round half to even.")  # fmt: skip
        raise Wrong(f"{told}.")
    few = reals(quantize(ties, scale, zero, 4))
    require(few.max() <= 15, "With bits=4 the codes should end at 15.")


def worse_with_more_bits(numbers):
    numbers = reals(numbers)
    require(numbers.size > 0, "It should hold at least one number.")
    seven, eight = (quantization_error(numbers, round_trip(numbers, bits)) for bits in (7, 8))
    require(eight > seven, f"The error is {seven:.3g} with 7 bits and {eight:.3g} with 8. Which "
            "numbers have no error at all with 7 bits?")  # fmt: skip


CHECKS = {
    "1.1": scale_and_zero_point,
    "1.2": same_codes_as_torch,
    "1.3": worse_with_more_bits,
}
