"""What makes the answers to the exercises of notebook 2 right, with a hint for each mistake."""

import numpy as np

from qhelpers.affine import quantization_error
from qhelpers.exercises.answers import mistake, near, real, reals, require, round_trip


def codes_in_use(count):
    count = real(count, "codes")
    mistake(count == 16, "16 codes cover 0 to 9. How many of their levels are near 0 to 1?")
    mistake(count == 2, "The step is 0.6, and numbers close to 1 are nearer to 1.2 than to 0.6.")
    require(count == 3, "How wide is a step, and which levels are nearest to 0, ..., 1?")


def bits_per_weight(bits):
    bits = real(bits, "bits")
    mistake(bits == 4, "The scales take space, too.")
    mistake(near(bits, 4 + 2 / 128), "A scale takes 2 bytes, which is 16 bits.")
    require(bits < 16, "All 128 weights of a group share one scale.")
    require(bits == 4.125, "Divide the bits of a group, with its scale, by its weights.")


def absolute_range(range_of):
    sample = np.random.default_rng(6).laplace(size=2000)
    ends = sample.min(), sample.max()
    fractions = np.linspace(1, 1 / 25, 25)
    candidates = [(ends[0] * a, ends[1] * b) for a in fractions for b in fractions]
    for bits in (4, 3):
        low, high = reals(range_of(sample, bits), 2)
        require(low < high, f"It should return (low, high), and returned ({low:.3}, {high:.3}).")

        def absolute(range_, bits=bits):
            return np.mean(np.abs(sample - round_trip(sample, bits, range_)))

        def squared(range_, bits=bits):
            return quantization_error(sample, round_trip(sample, bits, range_))

        yours, best = absolute((low, high)), min(map(absolute, candidates))
        told = f"With {bits} bits its mean absolute error is {yours:.4f}, the least {best:.4f}."
        mistake(near((low, high), min(candidates, key=squared)),
                f"{told} It is the range of least squared error.")  # fmt: skip
        require(yours <= 1.05 * best, told)


CHECKS = {"2.1": codes_in_use, "2.2": bits_per_weight, "2.3": absolute_range}
