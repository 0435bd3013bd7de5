"""What makes the answers to the exercises of notebook 6 right, with a hint for each mistake."""

import numpy as np

from qhelpers.exercises.answers import mistake, near, real, require


def bytes_of_the_file(count):
    count = real(count, "bytes")
    mistake(count == 89_400, "A bias for each of the 210 outputs, and a scale for each of them.")
    mistake(count in (89_610, 90_450), "A bias is an int32, which takes 4 bytes.")
    mistake(count == 90_240, "Biases and scales: 4 bytes each, 210 of both.")
    mistake(count == 359_280, "A weight takes one byte.")
    require(count == 91_080, "Weights 1 byte each; 210 biases and 210 scales 4 bytes each.")


def standard_error(error_of):
    for accuracy, images in [(0.974, 10_000), (0.5, 100), (0.9, 360)]:
        error = real(error_of(accuracy, images), "The result")
        right = 100 * np.sqrt(accuracy * (1 - accuracy) / images)
        mistake(near(100 * error, right), "It is right, but not in points: 1 point is 0.01.")
        mistake(near(error, right / 10), "The factor 100 belongs outside the root.")
        mistake(near(error, right**2 / 100), "This is the variance. Take the root.")
        require(near(error, right), "It is the root of p (1 - p) / n, in points.")


CHECKS = {"6.1": bytes_of_the_file, "6.2": standard_error}
