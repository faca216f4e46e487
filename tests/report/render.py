"""Renderables as text, as rich's own tests do: a console of fixed width that writes into a string."""

import io
from typing import Any

from rich.console import Console


def console(width: int = 80, color: bool = False, **options: Any) -> Console:
    """A console that writes into its own string; a terminal of 256 colours when asked."""
    settings: dict[str, Any] = {"file": io.StringIO(), "width": width, "_environ": {}, "legacy_windows": False, **options}
    if color:
        settings |= {"force_terminal": True, "color_system": "256"}
    return Console(**settings)


def written(target: Console) -> str:
    """What a console of ours has written so far."""
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def render(renderable: Any, width: int = 80, color: bool = False, **options: Any) -> str:
    """The text of a renderable, without trailing spaces."""
    target = console(width, color)
    target.print(renderable, **options)
    return "\n".join(line.rstrip() for line in written(target).splitlines()) + "\n"
