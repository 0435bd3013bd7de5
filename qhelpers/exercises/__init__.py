"""The notebooks' exercises: whether an answer is right, a hint where it isn't, what is left."""

from qhelpers.exercises.check import check, progress

__all__ = ["check", "progress"]
