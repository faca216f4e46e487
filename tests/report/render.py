"""Renderables as text, as in rich's own tests: a console of fixed width that writes into a string."""

import io
from typing import Any

from rich.console import Console


def console(width: int = 80, color: bool = False, **options: Any) -> Console:
    """Return a console that writes into its own string; with `color`, a terminal of 256 colours."""
    settings: dict[str, Any] = {"file": io.StringIO(), "width": width, "_environ": {}, "legacy_windows": False, **options}
    if color:
        settings |= {"force_terminal": True, "color_system": "256"}
    return Console(**settings)


def written(target: Console) -> str:
    """Return the text that a console of `console` has written so far."""
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def render(renderable: Any, width: int = 80, color: bool = False, **options: Any) -> str:
    """Return the text of a renderable, without trailing spaces."""
    target = console(width, color)
    target.print(renderable, **options)
    return "\n".join(line.rstrip() for line in written(target).splitlines()) + "\n"
