"""Which real numbers should the codes cover? Range strategies, and the search they share."""

from qhelpers.ranges.squared_error import mse_range
from qhelpers.ranges.strategies import (
    cross_entropy_range,
    kl_range,
    min_max_range,
    percentile_range,
)

__all__ = [
    "cross_entropy_range",
    "kl_range",
    "min_max_range",
    "mse_range",
    "percentile_range",
]
