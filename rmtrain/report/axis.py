"""An axis: where values lie, which of them are named, and in what words, so that no two names touch."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rmtrain.evaluation.diagnosis import round_width

FONT_SIZE = 11
CHARACTER_WIDTH = 0.58
"""Mean width of a character of a sans-serif face, in font sizes, rather too much than too little."""
GAP = 10
"""Least distance between two names side by side."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` as positions from `start` to `end`, which may run backwards, as heights do."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """About how wide a text is drawn; Chinese, Japanese and Korean characters are as wide as high."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return size * (wide + CHARACTER_WIDTH * (len(text) - wide))


def ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of a round number within `low` and `high`; at most `most`, and at least one."""
    width = round_width(high - low, max(1, most - 1))
    first, last = math.ceil(low / width - 1e-9), math.floor(high / width + 1e-9)
    return [number * width for number in range(first, last + 1)] or [low]


def rounded_range(values: Sequence[float], most: int, *also: float) -> tuple[float, float]:
    """The smallest range between multiples of a round number that holds all values, and `also` these.

    A single value, and none, give a range about it, or about 0.
    """
    everything = [*values, *also]
    low, high = min(everything, default=0.0), max(everything, default=0.0)
    if low == high:
        room = abs(low) / 2 or 1.0
        low, high = low - room, high + room
    width = round_width(high - low, most)
    return math.floor(low / width + 1e-9) * width, math.ceil(high / width - 1e-9) * width


def tick_names(values: Sequence[float]) -> list[str]:
    """Each value with just the digits that tell it from the next: 0.25, 12k, 5e−6."""
    largest = max((abs(value) for value in values), default=0.0)
    if 0 < largest < 1e-3:
        return [_scientific(value) for value in values]
    step = min((abs(b - a) for a, b in pairwise(values)), default=largest or 1.0)
    if step >= 1000:
        return [_thousands(value) for value in values]
    digits = next((digits for digits in range(7) if abs(step * 10**digits - round(step * 10**digits)) < 1e-6), 7)
    return [f"{value + 0.0:,.{digits}f}".replace("-", "−") for value in values]


def _thousands(value: float) -> str:
    power = 2 if abs(value) >= 1e6 else 1 if value else 0
    return f"{value / 1000**power:,.6g}{('', 'k', 'M')[power]}".replace("-", "−")


def _scientific(value: float) -> str:
    if not value:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")


def fitting_ticks(low: float, high: float, width: float, most: int = 7) -> list[float]:
    """As many ticks as have room for their names side by side in `width`."""
    for number in range(most, 1, -1):
        chosen = ticks(low, high, number)
        if len(chosen) < 2:
            continue
        needed = max(text_width(name) for name in tick_names(chosen)) + GAP
        if (chosen[1] - chosen[0]) / (high - low) * width >= needed:
            return chosen
    return ticks(low, high, 2)[:1]


def spread(positions: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Positions moved as little as may be so that things of these sizes, centred there, do not touch and stay within `low` and `high`.

    They keep their order. Where there is no room for all they are packed from `low` on, which is for the caller to avoid.
    """
    order = sorted(range(len(positions)), key=lambda number: positions[number])
    placed = list(positions)
    edge = low
    for number in order:
        placed[number] = max(placed[number], edge + sizes[number] / 2)
        edge = placed[number] + sizes[number] / 2
    edge = high
    for number in reversed(order):
        placed[number] = min(placed[number], edge - sizes[number] / 2)
        edge = placed[number] - sizes[number] / 2
    if order and placed[order[0]] < low + sizes[order[0]] / 2:
        edge = low
        for number in order:
            placed[number] = edge + sizes[number] / 2
            edge += sizes[number]
    return placed
