"""What a view takes from where it is printed: whether there are colours, and whether lines are to be wrapped."""

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

THOUSANDS = ("", "k", "M", "B", "T")
HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}


def compact(number: float) -> str:
    """A count in about three digits: 950, 12.3k, 1.01B."""
    magnitude = 0
    while abs(number) >= 999.5 and magnitude < len(THOUSANDS) - 1:
        number, magnitude = number / 1000, magnitude + 1
    if magnitude == 0:
        return f"{number:.0f}"
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}{THOUSANDS[magnitude]}"


def duration(seconds: float) -> str:
    """A time in its two largest units: 45s, 4m10s, 1h04m, 2d03h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def decimal(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A number with fixed digits, with a true minus sign; a dash for a number that does not exist."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def percent(part: float, whole: float) -> str:
    """A share such as 99.5 %; never rounded to 100 % or 0 % unless it is that."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1 %"
    if 99.9 < share < 100:
        return ">99.9 %"
    return f"{share:.1f} %" if 0 < share < 100 else f"{share:.0f} %"


def escape_invisible(text: str) -> str:
    """The text with everything that is invisible or moves a terminal's cursor as an escape such as `\\x1b`.

    Spaces, tabs and line feeds stay; every other control, format, private or unassigned character, and every unusual space, is escaped.
    """
    return "".join(_escape(character) if _is_hidden(character) else character for character in text)


def _is_hidden(character: str) -> bool:
    if character in " \t\n":
        return False
    category = unicodedata.category(character)
    return category in HIDDEN or category == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode() if character != "\xa0" else "\\xa0"


def json_text(document: Any) -> str:
    """Return a JSON document on one line that is safe to print: what `escape_invisible` escapes is a JSON escape in it."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return (
        text if text.isascii() else "".join(_json_escape(character) if _is_hidden(character) else character for character in text)
    )


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1]


WIDEST = 10_000


def has_colours(console: Console) -> bool:
    """Whether colours can be seen; without them, characters have to say what colours would."""
    return not console.no_color and console.color_system is not None


class WrapText:
    """A text that is wrapped in a terminal and keeps its own lines elsewhere, so that `grep` finds what stands on one line.

    Args:
        text: what is printed; words that are wider than the terminal are cut.
    """

    def __init__(self, text: Text) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.overflow = "fold" if console.is_terminal else "ignore"
        yield text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.text)


class KeyValues:
    """Names and values, one below the other; a long value goes on under its beginning in a terminal, and on its line elsewhere.

    Args:
        facts: values by name, as text or styled.
    """

    def __init__(self, facts: Mapping[str, str | Text]) -> None:
        self.facts = facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not console.is_terminal:
            width = max(map(len, self.facts))
            for name, value in self.facts.items():
                yield WrapText(Text.assemble((f"{name:<{width}}  ", "cyan"), value))
            return
        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in self.facts.items():
            grid.add_row(Text(name), value if isinstance(value, Text) else Text(value))
        yield grid


class NoWrap:
    """A view as wide as it needs to be where it is not in a terminal, so that no cell of a table is folded there or padded at its end.

    Args:
        view: what is printed.
    """

    def __init__(self, view: RenderableType) -> None:
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if console.is_terminal:
            yield self.view
            return
        for line in console.render_lines(self.view, options.update(max_width=WIDEST), pad=False):
            yield Segment("".join(segment.text for segment in line).rstrip() + "\n")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.view)
