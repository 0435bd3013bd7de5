"""What makes the answers to the exercises of notebook 2 right, with a hint for each mistake."""

import numpy as np

from qhelpers.exercises.answers import mistake, near, real, reals, require, round_trip, rounded


def codes_in_use(count):
    count = real(count, "codes_in_use")
    require(count == int(count), "Count the levels that some number rounds to: a whole number.")
    mistake(count == 16, "16 codes cover 0 to 9. How many of their levels are near 0 to 1?")
    mistake(count == 15, "15 codes are left for them, but which of these levels are near 0 to 1?")
    mistake(count == 256, "That is every code of 8 bits; here are 4 bits.")
    mistake(count == 2, "The step is 0.6, and numbers close to 1 are nearer to 1.2 than to 0.6.")
    mistake(count == 1, "The step is 0.6. Numbers near 0 get the first code; what do those near "
            "0.6 get?")  # fmt: skip
    mistake(count == 4, "Without the code of 9, which no number from 0 to 1 gets.")
    require(count == 3, "How wide is a step, and which levels are nearest to 0, ..., 1?")


def bits_per_weight(bits):
    bits = real(bits, "bits_per_weight")
    mistake(bits == 4, "The scales take space, too.")
    mistake(rounded(bits, 4 + 2 / 32), "A scale takes 2 bytes, which is 16 bits.")
    mistake(bits == 4 + 32 / 32, "A scale of 2 bytes has 16 bits, not 32.")
    mistake(bits == 16 / 32, "That is the share of the scale; a weight has its own 4 bits.")
    mistake(rounded(bits, (4 + 16 / 32) / 8), "That is in bytes; the question asks for bits.")
    mistake(bits == 4 * 32 + 16, "That is a whole group; how much of it is one weight?")
    mistake(bits == 4 + 32 / 16, "Divide the other way: 32 weights share 16 bits.")
    require(bits < 16, "All 32 weights of a group share one scale.")
    require(bits == 4 + 16 / 32, "Divide the bits of a group, with its scale, by its weights.")


def absolute_range(range_of):
    sample = np.random.default_rng(6).laplace(size=2000)
    given, returned = sample.copy(), []
    for bits in (4, 3):
        low, high = reals(range_of(sample, bits), 2)
        require(np.array_equal(sample, given), "Your function changes the array that it is given.")
        ends = f"({low:.3}, {high:.3})"
        require(low < high, f"It should return (low, high), and returned {ends}.")
        mistake(low > 0, f"It returned {ends}, which leaves out all negative numbers. Return the "
                "ends of the range, not their fractions.")  # fmt: skip
        mistake((low, high) in returned, "It returns the same range for 4 and for 3 bits. Does "
                "your search pass `bits` on?")  # fmt: skip
        returned.append((low, high))
        least_absolute_error(sample, bits, (low, high))


def least_absolute_error(sample, bits, range_):
    """Raise Wrong unless quantizing `sample` in this range has nearly the least absolute error."""
    low, high = sample.min(), sample.max()
    fractions = np.linspace(1, 1 / 25, 25)
    ranges = [(low * a, high * b) for a in fractions for b in fractions]
    errors = [sample - round_trip(sample, bits, candidate) for candidate in ranges]

    def is_least(loss):
        return near(range_, min(zip(map(loss, errors), ranges))[1])

    yours = np.mean(np.abs(sample - round_trip(sample, bits, range_)))
    best = min(np.mean(np.abs(off)) for off in errors)
    told = f"With {bits} bits its mean absolute error is {yours:.4f}, the least {best:.4f}."
    mistake(near(range_, (low, high)), f"{told} It is the range of min-max.")
    mistake(
        is_least(lambda off: np.mean(off**2)), f"{told} It is the range of least squared error."
    )
    mistake(is_least(np.mean) or is_least(lambda off: abs(np.mean(off))),
            f"{told} Errors of both signs cancel: take the mean of their sizes.")  # fmt: skip
    mistake(is_least(lambda off: np.max(np.abs(off))),
            f"{told} It is the range whose largest error is least.")  # fmt: skip
    require(yours <= 1.05 * best, told)


CHECKS = {"2.1": codes_in_use, "2.2": bits_per_weight, "2.3": absolute_range}
