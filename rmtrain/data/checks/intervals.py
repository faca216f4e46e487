"""How sure a share is."""

import math

NORMAL_QUANTILE_95 = 1.959963984540054


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson 95 % score interval of a share observed in `n` independent trials (Wilson 1927, eq. 4 of Brown et al. 2001)."""
    square = NORMAL_QUANTILE_95**2
    center = (share + square / (2 * n)) / (1 + square / n)
    half = NORMAL_QUANTILE_95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)
