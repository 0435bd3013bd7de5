"""The notebooks' exercises: whether an answer is right, and a hint where it isn't."""

from qhelpers.exercises.check import check

__all__ = ["check"]
