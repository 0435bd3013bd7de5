"""What makes the answers to the exercises of notebook 8 right, with a hint for each mistake."""

import numpy as np

from qhelpers.affine import symmetric_dequantize, symmetric_quantization
from qhelpers.exercises.answers import mistake, near, real, reals, require, rounded
from qhelpers.formats.blocks import mx_dequantize, mx_quantize
from qhelpers.formats.floats import E2M1

TIMES = 100  # so many times as large is MXFP4's error to be


def pattern_of_bits(as_e4m3, as_e5m2, small):
    """10110101 as E4M3, -(1 + 5/8) 2^(6 - 7), and as E5M2, -(1 + 1/4) 2^(13 - 15); 00000011."""
    e4m3, e5m2, small = real(as_e4m3, "as_e4m3"), real(as_e5m2, "as_e5m2"), real(small, "small")
    mistake(rounded(e4m3, -0.3125) and rounded(e5m2, -0.8125), "They are in the other order.")
    mistake(rounded(e4m3, 0.8125) or rounded(e5m2, 0.3125), "The first bit is the sign.")
    mistake(
        rounded(abs(e4m3), 0.3125) or rounded(abs(e5m2), 0.0625),
        "In front of the mantissa stands a 1 that isn't stored.",
    )
    mistake(near(abs(e4m3), 104) or near(abs(e5m2), 10_240), "Subtract the bias.")
    mistake(rounded(abs(e4m3), 0.40625), "The bias of E4M3 is 7.")
    mistake(rounded(abs(e5m2), 80) or rounded(abs(e5m2), 0.15625), "The bias of E5M2 is 15.")
    require(rounded(e4m3, -0.8125), "E4M3: a sign, then 4 bits of exponent, 3 of mantissa.")
    require(rounded(e5m2, -0.3125), "E4M3 is right. E5M2: 5 bits of exponent, 2 of mantissa.")
    mistake(
        rounded(small, 1.375 * 2**-7) or rounded(small, 1.375 * 2**-6),
        "Where all bits of the exponent are 0, no 1 stands in front of the mantissa.",
    )
    mistake(rounded(small, 0.375 * 2**-7), "0000 stands for the same power of two as 0001.")
    require(rounded(small, 3 * 2**-9), "The first two are right. The third is subnormal.")


def exponent_of(number):
    """The largest k with 2^k <= number, exactly."""
    return int(np.frexp(number)[1]) - 1


def scale_of_a_block(scale_code):
    rng = np.random.default_rng(0)
    signs = np.where(np.arange(32) % 3, 1, -1)  # the first number, the largest, is negative
    shares = signs * np.append(1, rng.uniform(0.01, 0.2, 31))
    for top, largest in [(1.7 * 2**-5, 2), (1.2 * 2**3, 2), (4.0, 2), (448.0, 8), (1.1, 4)]:
        answer = code_from(scale_code, top * shares, largest)
        positive = exponent_of(top * shares.max()) - largest + 127
        mistake(answer == positive, "The largest magnitude may be a negative number's.")
        right_scale(answer, top, largest, exponent_of(top) - largest)
    zeros = code_from(scale_code, np.zeros(32), 2)
    require(zeros == 0, f"A block of zeros gets {zeros:g}; it should get the code 0.")
    for top, right in ((2.0**-200, 0), (2.0**200, 254)):
        answer = code_from(scale_code, top * shares, 2)
        require(answer == right, f"If the largest number is {top:.1e}, yours is {answer:g}; codes "
                "end at 0 and 254.")  # fmt: skip
    below = code_from(scale_code, np.nextafter(8, 0) * shares, 2)
    require(below == 127, "Just below 8, log2 rounds to 3. np.frexp takes a number apart exactly: "
            "x = m 2^e, with m from 0.5 to 1.")  # fmt: skip


def code_from(scale_code, block, largest_exponent):
    given = block.copy()
    with np.errstate(divide="ignore"):  # the logarithm of 0
        answer = scale_code(given, largest_exponent)
    require(np.array_equal(given, block), "Your function changes the block it is given.")
    require(np.size(answer) == 1, "Return one code for the block.")
    return real(answer, "The code")


def right_scale(answer, top, largest, exponent):
    """Raise Wrong unless the answer is the code of 2^exponent."""
    mistake(answer == exponent, "That is the exponent. Its code is 127 more.")
    mistake(near(answer, 2.0**exponent), "That is the scale. Return the code of its exponent.")
    mistake(answer == exponent + largest + 127, "Subtract largest_exponent.")
    mistake(answer == exponent + 128, "Round the logarithm down.")
    mistake(
        answer == exponent + 126,
        "Divide by the format's largest power of two, not by its largest number.",
    )
    require(
        answer == exponent + 127,
        f"If the largest |x| is {top:g} and largest_exponent {largest}, yours is {answer:g}.",
    )


def mxfp4_broken(bad_numbers):
    numbers = reals(bad_numbers, 64).reshape(-1)
    require(np.isfinite(numbers).all(), "All numbers must be finite.")
    require(numbers.any(), "Zeros come back exactly from both.")
    top = np.abs(numbers).max()
    require(1e-3 <= top <= 1e3, "The largest |x| should lie between 0.001 and 1,000.")
    codes, scale = symmetric_quantization(numbers, 4)
    int4 = symmetric_dequantize(codes, np.float64(np.float16(scale)))
    mxfp4 = mx_dequantize(*mx_quantize(numbers, E2M1), E2M1)
    errors = [np.mean((restored - numbers) ** 2) for restored in (mxfp4, int4)]
    told = f"The mean squared error is {errors[0]:.2g} in MXFP4 and {errors[1]:.2g} in int4."
    mistake(errors[0] <= errors[1], f"{told} Here int4 is the worse one. Where is E2M1 coarse?")
    require(
        errors[0] >= TIMES * errors[1],
        f"{told} E2M1 ends at 6. From which largest |x| on is the scale 2, and no longer 1?",
    )


def bits_of_nf4(bits_per_number):
    """4 bits, 8 for the scale of each 64 numbers, 32 for each 256 of these scales."""
    bits = real(bits_per_number, "bits_per_number")
    exact = 4 + 8 / 64 + 32 / (64 * 256)
    for wrong, hint in [
        (4, "The scales take space, too."),
        (4.5, "That is with a float32 for each block of 64."),
        (4 + 8 / 64, "The scales of 8 bits share a scale, too, which is a float32."),
        (4 + 8 / 64 + 32 / 256, "A float32 serves 256 scales: how many numbers are that?"),
        (4 + 8 / 64 + 32 / 64, "A float32 serves 256 scales: how many numbers are that?"),
        (exact - 4, "Add the 4 bits of the number itself."),
        (exact / 8, "That is in bytes."),
    ]:
        mistake(abs(bits - wrong) < 5e-4, hint)
    require(
        abs(bits - exact) < 6e-4,
        "Count all bits of 64 times 256 numbers, and divide. Give three digits behind the point.",
    )


CHECKS = {
    "8.1": pattern_of_bits,
    "8.2": scale_of_a_block,
    "8.3": mxfp4_broken,
    "8.4": bits_of_nf4,
}
