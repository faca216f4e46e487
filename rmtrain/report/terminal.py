"""The door to the terminal: all text for stdout and stderr passes here, where it loses its power over the terminal and its encoding.

`protect_streams` replaces both streams for the command line; `TerminalConsole` is the rich console that everything is printed with.
"""

import codecs
import os
import re
import signal
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from rmtrain.report.console import escape_invisible

REPLACEMENTS = {
    **dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)),
    **dict(zip("−–─━│┃╎┼·×●✓✗⟦⟧⏎⇥▸→∪", "---" + "-|||+.xo+x[]$>>>+", strict=True)),
    **dict(zip("▁▂▃▄▅▆▇█░▓▒▌", "...:::##:%=#", strict=True)),
    "…": "...",
    "±": "+-",
}
"""What rmtrain itself draws, for an encoding that lacks it: a minus sign must not become a question mark."""
PROGRESS_BAR = re.compile(r"(?:\r(?!\n)|(?:\x1b\[A)+$)")
"""How a write of tqdm, which libraries draw downloads with, begins: it returns to the start of the line, or only moves up."""


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks: a sign of ours by a similar one, any other character by a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(REPLACEMENTS.get(char, "?") for char in text), error.end


codecs.register_error("rmtrain", _replace)


class TerminalStream:
    """A text stream that escapes what would control a terminal, and stops the command, as SIGPIPE would, when its reader goes away.

    escapes: False for the stream of a rich console, which escapes text before it adds its own styles.
    """

    def __init__(self, stream: Any, escapes: bool = True) -> None:
        self.stream, self.escapes = stream, escapes

    def write(self, text: str) -> int:
        """Write text; return the number of its characters."""
        if self.escapes and not text.isprintable():
            moves = PROGRESS_BAR.match(text)
            begin = moves.end() if moves else 0
            text = text[:begin] + escape_invisible(text[begin:])
        try:
            self.stream.write(text)
        except BrokenPipeError:
            self._close()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._close()

    def _close(self) -> None:
        # Python's SIGPIPE is ignored, so that a closed socket is an error like others; here it ends the command as SIGTERM does, which
        # saves a checkpoint. Nothing is written to the pipe any more, also not when the interpreter flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        handler = signal.getsignal(signal.SIGTERM)
        if callable(handler):
            handler(signal.SIGPIPE, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def protect_streams() -> None:
    """Replace stdout and stderr, so that no text can control the terminal, and characters that its encoding lacks are replaced."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        elif isinstance(stream, TerminalStream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="rmtrain")
        setattr(sys, name, TerminalStream(stream))


class TerminalConsole(Console):
    """A rich console for text of any origin: control characters are shown as escapes, and square brackets are not markup."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        file: Any = TerminalStream(stream.stream, escapes=False) if isinstance(stream, TerminalStream) else None
        super().__init__(stderr=stderr, quiet=quiet, file=file, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object; the text of its segments is escaped, their styles and rich's own control codes are not."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(escape_invisible(segment.text), segment.style)
