"""Numbers and texts as people read them."""

import json
import unicodedata
from typing import Any

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


def revealed(text: str) -> str:
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
    """A JSON document on one line, in which everything that `revealed` escapes is an escape, too, so that a terminal can show it."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return (
        text if text.isascii() else "".join(_json_escape(character) if _is_hidden(character) else character for character in text)
    )


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1]
