"""The door to the terminal: all text for stdout and stderr passes here, where it loses its power over the terminal and its encoding.

`protect_streams` replaces both streams for the command line; `TerminalConsole` is the rich console that everything is printed with.
"""

import codecs
import errno
import io
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
    "»": ">",
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


class StandardStream(io.FileIO):
    """Standard output or error. After an error it takes anything and keeps nothing, so that no flush at the exit fails again."""

    def write(self, data: Any) -> int:
        """Write as a file does; that the reader went away is handled as SIGPIPE, by the handler of the signals that stop a command."""
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            handler = signal.getsignal(signal.SIGTERM)
            if error.errno == errno.EPIPE and callable(handler):
                handler(signal.SIGPIPE, None)
                return len(memoryview(data).cast("B"))
            error.filename = f"standard {'output' if self.fileno() == 1 else 'error'}"
            raise


class TerminalStream:
    """A text stream that escapes what would control a terminal.

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
        self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def protect_streams() -> None:
    """Replace stdout and stderr by streams whose text cannot control the terminal.

    Characters that the encoding lacks are replaced. A pipe that is closed stops the command as a signal does: a run saves, and the exit
    code is 141.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, TerminalStream):
            continue
        if stream is None:  # closed by the parent process
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            raw = io.BufferedWriter(StandardStream(stream.fileno(), "w", closefd=False))
            stream = io.TextIOWrapper(raw, stream.encoding, "rmtrain", line_buffering=stream.line_buffering)
        elif hasattr(stream, "reconfigure"):  # of a test or a notebook
            stream.reconfigure(errors="rmtrain")
        setattr(sys, name, TerminalStream(stream))


class TerminalConsole(Console):
    """A rich console for text of any origin: control characters are shown as escapes, and square brackets are not markup."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        file: Any = TerminalStream(stream.stream, escapes=False) if isinstance(stream, TerminalStream) else None
        super().__init__(stderr=stderr, quiet=quiet, file=file, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does; only a terminal has a width at which lines are cut."""
        super().print(*objects, **{"crop": self.is_terminal, **how})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object; the text of its segments is escaped, their styles and rich's own control codes are not."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(escape_invisible(segment.text), segment.style)
