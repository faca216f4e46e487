"""Values in bins that a person can read: round widths, an edge at zero."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.checks.intervals import wilson_interval

ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
"""What the first digits of a round width are."""


def round_width(span: float, most: int) -> float:
    """The smallest round width of which at most `most` cover a span; 1 for a span of 0."""
    if span <= 0:
        return 1.0
    least = span / most
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(digits * power for digits in ROUND if digits * power >= least * (1 - 1e-9))


def round_edges(low: float, high: float, most: int) -> NDArray[np.float64]:
    """Edges, a round width apart, that are multiples of it and hold all from `low` to `high`; at most `most` + 1 bins."""
    width = round_width(high - low, most)
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    return np.arange(first, max(last, first + 1) + 1, dtype=np.float64) * np.float64(width)


def share_with_interval(right: NDArray[Any], comparisons: NDArray[np.int64]) -> dict[str, Any]:
    """Count, share and Wilson 95 % interval of credits in [0, 1]; each comparison is one trial, however many edges it has."""
    if not len(right):
        return {"preferences": 0, "accuracy": None, "accuracy_low": None, "accuracy_high": None}
    share = float(np.mean(right))
    low, high = wilson_interval(share, len(np.unique(comparisons)))
    return {"preferences": len(right), "accuracy": share, "accuracy_low": low, "accuracy_high": high}
