"""What makes the answers to the exercises of notebook 5 right, with a hint for each mistake."""

import numpy as np

from qhelpers.exercises.answers import Wrong, mistake, real, reals, require, require_result


def longest_sum_in_16_bits(count):
    count = real(count, "longest")
    mistake(18 <= count < 18.5, "The largest product is 255 times -8, not 255 times 7.")
    mistake(count == 32, "Signed integers of 16 bits end at 32,767, not at 65,535; and input codes "
            "go up to 255.")  # fmt: skip
    mistake(count == 15, "Codes of 8 bits end at 255, not at 256.")
    mistake(count == 1, "255 times -128 is for weights of 8 bits. These have 4.")
    mistake(16 < count <= 17, "Round down: a part of a product doesn't fit.")
    require(count == 16, "How often does the largest product fit into 32,767?")


def fixed_point_product(multiply):
    acc = np.array([1, 3, 5, -1, -3, 100, -100, 2_000_000, -2_000_000], np.int32)
    for M_0, shift in [(2**30, 31), (1_484_674_521, 42), (1_700_000_003, 33)]:
        codes = multiply(acc.copy(), M_0, shift)
        require_result(codes)
        codes = np.asarray(codes)
        require(codes.dtype.kind == "i", f"The result has the type {codes.dtype}: a float came in.")
        require(codes.shape == acc.shape, f"The result has the shape {codes.shape}; acc has the "
                f"shape {acc.shape}.")  # fmt: skip
        exact, half = [int(n) * M_0 for n in acc], 1 << (shift - 1)
        wanted = np.array([(n + half) >> shift for n in exact])
        if np.array_equal(codes, wanted):
            continue
        for other, hint in likely_mistakes(exact, shift):
            mistake(np.array_equal(codes, other), hint)
        place = np.flatnonzero(codes != wanted)[0]
        raise Wrong(f"{acc[place]:,} times {M_0:,}, shifted by {shift}, is {wanted[place]:,}, "
                    f"and not {codes[place]:,}.")  # fmt: skip


def likely_mistakes(exact, shift):
    """Yield what a likely mistake makes of the exact products, and the hint for it."""
    half = 1 << (shift - 1)
    yield [n >> shift for n in exact], "It rounds down: add half a unit before you shift."
    hint = "You added a whole unit. Half of 2**shift is 2**(shift - 1)."
    yield [(n + 2 * half) >> shift for n in exact], hint
    hint = "The product doesn't fit into 32 bits, and NumPy says nothing: make acc int64 first."
    yield [wrapped(n, 32) >> shift for n in exact], hint
    yield [wrapped(n + half, 32) >> shift for n in exact], hint
    hint = "In Python, + comes before << and >>: put brackets around the half unit."
    yield [wrapped((n + 1) << (shift - 1), 64) >> shift for n in exact], hint
    hint = "It cuts off towards 0, so negative numbers go the wrong way. A shift rounds down."
    yield [int(n / 2**shift + 0.5) for n in exact], hint
    hint = "It cuts off towards 0. Add half a unit and shift, which rounds down."
    yield [int(n / 2**shift) for n in exact], hint
    hint = "It rounds halves to even, as floats do. Add half a unit and shift."
    yield np.rint([n / 2**shift for n in exact]), hint


def wrapped(number, bits):
    """An integer as a signed one of so many bits holds it."""
    return (number + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def largest_saturation(worst_inputs, worst_weights):
    inputs, weights = reals(worst_inputs, 2), reals(worst_weights, 2)
    require(((inputs >= 0) & (inputs <= 255)).all(), "Input codes are 0 to 255.")
    require(((weights >= -128) & (weights <= 127)).all(), "Weight codes are -128 to 127.")
    require((np.append(inputs, weights) % 1 == 0).all(), "Codes are integers.")
    exact = float(inputs.ravel() @ weights.ravel())
    lost = abs(exact - min(max(exact, -(2**15)), 2**15 - 1))
    mistake(lost == 0 and weights.min() < 0 < weights.max(),
            f"Products of different signs cancel: their sum is {exact:,.0f}.")  # fmt: skip
    require(lost > 0, f"Their sum is {exact:,.0f}, and 16 bits hold that.")
    mistake(lost == 32_003, "16 bits lose 32,003 of it. More is possible: weight codes reach "
            "further on the other side of 0.")  # fmt: skip
    require(lost == 32_512, f"16 bits lose {lost:,.0f} of it. More is possible.")


def byte_of_four_codes(packed_byte):
    mistake(str(packed_byte) in ("10001101", "10_00_11_01"),
            "These are the bits. In Python a number in binary begins with 0b.")  # fmt: skip
    number = real(packed_byte, "packed_byte")
    mistake(number == 0b01_11_00_10, "The first code is in the highest bits. It belongs in the "
            "lowest.")  # fmt: skip
    mistake(number == 0b11_11_11_01, "Mask first: a negative code has ones on its left, which "
            "flood the other places.")  # fmt: skip
    mistake(number == 0b00_10_01_11, "You added 2 to each code. Here a code keeps the lowest two "
            "bits of its two's complement: -1 is 11.")  # fmt: skip
    mistake(number < 0, "Seen as signed. As uint8 a byte is from 0 to 255, and here its highest "
            "bit counts 128.")  # fmt: skip
    mistake(number in (0b10_00_10_01, 0b11_00_11_01), "Which two bits has -1, and which has -2? "
            "Count down from 0, which is 00: 11 comes first, then 10.")  # fmt: skip
    require(number == 0b10_00_11_01, "Write each code as two bits, and put them next to each other "
            "from right to left.")  # fmt: skip


CHECKS = {
    "5.1": longest_sum_in_16_bits,
    "5.2": fixed_point_product,
    "5.3": largest_saturation,
    "5.4": byte_of_four_codes,
}
