"""Numbers and text on a console: formats, escapes for invisible characters, and lines that are wrapped in terminals only."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

THOUSANDS = ("", "k", "M", "B", "T")
MAX_WIDTH = 10_000
"""Width in characters of a view that is not printed in a terminal. Without a limit, one long cell would pad all others."""


def compact(number: float) -> str:
    """Format a count in about three digits: 950, 12.3k, 1.01B."""
    magnitude = 0
    while abs(number) >= 999.5 and magnitude < len(THOUSANDS) - 1:
        number, magnitude = number / 1000, magnitude + 1
    if magnitude == 0:
        return f"{number:.0f}"
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}{THOUSANDS[magnitude]}"


def duration(seconds: float) -> str:
    """Format a duration in its two largest units: 45s, 4m10s, 1h04m, 2d03h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def decimal(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """Format a number with fixed digits and a true minus sign; None is a dash."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def apart(value: float | None, other: float | None) -> str:
    """Format a number with four digits, or with all of its digits where four might not tell it from the other number."""
    if value is None or other is None or abs(value - other) >= 0.001:
        return decimal(value)
    return str(value)


def percent(part: float, whole: float) -> str:
    """Format a share such as 99.5 %; only exact values are 0 % and 100 %."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1 %"
    if 99.9 < share < 100:
        return ">99.9 %"
    return f"{share:.1f} %" if 0 < share < 100 else f"{share:.0f} %"


def escape_invisible(text: str) -> str:
    """Escape control, format, private and unassigned characters, as in `\\x1b`, and all spaces but space, tab and line feed."""
    return "".join(char.encode("unicode_escape").decode() if _is_invisible(char) else char for char in text)


def one_line(text: str) -> str:
    """Escape invisible characters, and line feeds as well, so that a name with one cannot begin a line that looks like ours."""
    return escape_invisible(text).replace("\n", "\\n")


MARKUP = re.compile(r"[\\`*<|&~$]|](?=[(\[:])|(?<!\w)_|_(?!\w)|(?<=:)/(?=/)|(?<=www)\.", re.IGNORECASE)
"""What Markdown, HTML within it, or a site that links addresses could read in a text as something else than text."""


def markdown_text(text: str) -> str:
    """Return a text for one line of Markdown, where it looks as it does here."""
    return MARKUP.sub(r"\\\g<0>", " ".join(escape_invisible(text).split()))


def json_text(document: Any, encoding: str = "utf-8") -> str:
    """Return a JSON document on one line, with JSON escapes for invisible characters and for all that the encoding may lack.

    Raises ValueError for NaN and infinity.
    """
    return escape_json(json.dumps(document, ensure_ascii=not encoding.lower().startswith("utf"), allow_nan=False))


def escape_json(text: str) -> str:
    """Return JSON with escapes for invisible characters, which in JSON are parts of texts, except line feeds and tabs."""
    if text.isprintable():
        return text
    return "".join(json.dumps(char)[1:-1] if _is_invisible(char) else char for char in text)


def _is_invisible(char: str) -> bool:
    # `isprintable` is False for the Unicode categories "other" and "separator", except the ASCII space.
    return not char.isprintable() and char not in "\t\n"


def has_colours(console: Console) -> bool:
    """Return True if colours are visible; otherwise characters have to carry their meaning."""
    return not console.no_color and console.color_system is not None


@dataclass(frozen=True, slots=True)
class WrapText:
    """Text that is wrapped in a terminal, and folded in a word that is wider; elsewhere its lines stay whole, for `grep`."""

    text: Text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.overflow = "fold" if console.is_terminal else "ignore"
        yield text


@dataclass(frozen=True)
class NoWrap:
    """A view that fits the terminal; elsewhere it is as wide as it needs to be, so that no cell is folded or padded at the end."""

    view: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if console.is_terminal:
            yield self.view
            return
        for line in console.render_lines(self.view, options.update(max_width=MAX_WIDTH), pad=False):
            yield Segment("".join(segment.text for segment in line).rstrip() + "\n")


class KeyValues(NoWrap):
    """Names and values, plain or styled, one per line. In a terminal a long value is wrapped and indented."""

    def __init__(self, values: Mapping[str, str | Text]) -> None:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in values.items():
            grid.add_row(Text(name), value if isinstance(value, Text) else Text(value))
        super().__init__(grid)
