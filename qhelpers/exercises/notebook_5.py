"""What makes the answers to the exercises of notebook 5 right, with a hint for each mistake."""

import numpy as np

from qhelpers.exercises.answers import Wrong, mistake, real, reals, require


def longest_sum_in_16_bits(count):
    count = real(count, "longest")
    mistake(count == 18, "The largest product is 255 times -8, and not 255 times 7.")
    mistake(count in (32, 17, 33), "Signed 16-bit integers end at 32,767; a part of a product "
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
        if np.array_equal(codes, wanted):
            continue
        mistake(np.array_equal(codes, [n >> shift for n in exact]),
                "It rounds down: add half a unit before you shift.")  # fmt: skip
        mistake(np.array_equal(codes, np.rint([n / 2**shift for n in exact])),
                "It rounds halves to even, as floats do. Add half a unit and shift.")  # fmt: skip
        raise Wrong(f"{acc[codes != wanted][:1]} times {M_0:,}, shifted by {shift}, is not right. "
                    "Does the product fit its type?")  # fmt: skip


def largest_saturation(inputs, weights):
    inputs, weights = reals(inputs, 2), reals(weights, 2)
    require(((inputs >= 0) & (inputs <= 255)).all(), "Input codes are 0 to 255.")
    require(((weights >= -128) & (weights <= 127)).all(), "Weight codes are -128 to 127.")
    exact = float(inputs @ weights)
    lost = abs(exact - min(max(exact, -(2**15)), 2**15 - 1))
    require(lost > 0, f"Their sum is {exact:,.0f}, and 16 bits hold that.")
    require(lost == 32_512, f"16 bits lose {lost:,.0f} of it. More is possible.")


CHECKS = {
    "5.1": longest_sum_in_16_bits,
    "5.2": fixed_point_product,
    "5.3": largest_saturation,
}
