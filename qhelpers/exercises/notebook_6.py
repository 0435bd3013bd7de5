"""What makes the answers to the exercises of notebook 6 right, with a hint for each mistake."""

import numpy as np

from qhelpers.exercises.answers import mistake, near, real, require


def bytes_of_the_file(count):
    count = real(count, "bytes")
    mistake(count == 89_400, "Add a bias and a scale for each of the 210 outputs.")
    mistake(count in (89_610, 89_820, 90_450),
            "A bias (int32) takes 4 bytes, and so does a scale (float32).")  # fmt: skip
    mistake(count == 90_240, "There are 210 biases and 210 scales, of 4 bytes each.")
    mistake(count in (90_244, 90_252), "Per channel means one scale for each of the 210 outputs.")
    mistake(count in (357_600, 358_440, 359_280), "In int8 a weight takes one byte.")
    mistake(count == 8 * 91_080, "These are bits. A byte has 8 of them.")
    mistake(near(1000 * count, 91_080), "These are kilobytes. Give the number of bytes.")
    require(count == 91_080,
            "A weight takes 1 byte; 210 biases and 210 scales take 4 bytes each.")  # fmt: skip


def error_of_difference(error_of):
    for first, second, images in [(0.5, 0.9, 100), (0.9, 0.8, 360)]:
        error = real(error_of(first, second, images), "The result")
        variances = np.array([first * (1 - first), second * (1 - second)]) / images
        errors, right = 100 * np.sqrt(variances), 100 * np.sqrt(variances.sum())
        mean = (first + second) / 2
        pooled = 100 * np.sqrt(mean * (1 - mean) / images)
        mistake(near(100 * error, right), "It is right, but not in points: 1 point is 0.01.")
        mistake(near(error, right / 10), "The factor 100 belongs outside the root.")
        mistake(near(error, 100 * variances.sum()), "This is the variance. Take the root.")
        mistake(any(near(error, each) for each in errors),
                "This is the error of one accuracy. Both accuracies have one.")  # fmt: skip
        mistake(near(error, errors.sum()), "Variances add, standard errors don't.")
        mistake(near(error, 100 * np.sqrt(abs(variances[0] - variances[1]))),
                "The variances add in a difference, too.")  # fmt: skip
        mistake(near(error, right / np.sqrt(2)), "Each accuracy has n images of its own.")
        of_one = [np.sqrt(2) * each for each in (*errors, pooled)]
        mistake(any(near(error, each) for each in of_one),
                "The two accuracies differ, so each has its own variance.")  # fmt: skip
        require(near(error, right), "It is the root of the sum of both variances, in points.")


CHECKS = {"6.1": bytes_of_the_file, "6.2": error_of_difference}
