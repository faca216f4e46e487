"""What reaches a terminal: escapes in place of control characters, and replacements for what its encoding lacks."""

import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rmtrain.engine.rank import raise_on_signal
from rmtrain.errors import Stopped
from rmtrain.report.console import KeyValues, WrapText, one_line
from rmtrain.report.terminal import REPLACEMENTS, StandardStream, TerminalConsole, protect_streams
from tests.messages import ROOT

EVIL = {
    "clipboard": "\x1b]52;c;aGFja2Vk\x07",
    "colour": "a\x1b[31mb",
    "C1": "a\x9b2Jb",
    "title": "\x9d0;title\x9c",
    "bidi": "abc\u202edef\u2066ghi",
    "line": "a\u2028b\u2029c\x85d",
    "back": "safe\b\b\b\bevil",
    "surrogate": "a\udcffb\ud800",
    "delete": "a\x7fb",
}
"""Texts of strangers that would control a terminal, or cannot be encoded."""
MARKUP = ("[/x]", "runs[v2]", "[red]a", "[link=http://example.com]b[/link]", ":boom:", "\\[")

DRAWING = (
    "console",
    "evaluation_view",
    "comparison_view",
    "token_strip",
    "tables",
    "lengths",
    "step_view",
    "text_diff",
    "progress",
    "run_view",
)
"""Modules that draw with signs."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Keep the handlers of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stream(monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8", errors: str = "strict") -> io.BytesIO:
    """Make stderr a protected stream of this encoding; return the bytes that it gets."""
    binary = io.BytesIO()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(binary, encoding, errors, write_through=True))
    monkeypatch.setattr("sys.stdout", io.StringIO())
    protect_streams()
    return binary


def is_harmless(text: str) -> bool:
    return text.replace("\n", "").isprintable()


@pytest.mark.parametrize("what", EVIL)
def test_no_way_of_printing_controls_a_terminal(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain writes, and whatever rich draws: a text, a cell, a title, a branch, the name of a task."""
    binary, text = stream(monkeypatch), EVIL[what]
    print(text, file=sys.stderr)
    sys.stderr.writelines([text, "\n"])
    plain = binary.getvalue().decode()
    assert is_harmless(plain)
    assert plain.count("\\") >= 2, "guard: it is escaped, not lost"
    console = TerminalConsole(stderr=True)
    table = Table(text, title=text)
    table.add_row(text)
    for view in (text, Text(text), table, Panel(text, title=text), Tree(text)):
        console.print(view)
    with Progress(console=console) as progress:
        progress.add_task(text, total=2)
    drawn = binary.getvalue().decode()
    assert is_harmless(drawn)
    assert len(drawn) > len(plain) + 8 * 5, "guard: rich drew"


def test_styles_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich's own escape sequences are those of the console; a text in between is escaped."""
    binary = stream(monkeypatch)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    TerminalConsole(stderr=True).print(Text("a\x1b[31mb", style="bold red"))
    assert re.fullmatch(r"\x1b\[1;31ma\\x1b\[31mb\x1b\[0m\n", binary.getvalue().decode())


@pytest.mark.parametrize("text", MARKUP)
def test_brackets_are_not_markup(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = stream(monkeypatch)
    console = TerminalConsole(stderr=True)
    console.print(f"note: {text}")
    table = Table(text)
    table.add_row(text)
    console.print(table)
    assert binary.getvalue().decode().count(text) == 3


def test_progress_bars_of_libraries_move(monkeypatch: pytest.MonkeyPatch) -> None:
    binary = stream(monkeypatch)
    for text in ("\r 50%|##  | a\x1b[2Jb", "\x1b[A\x1b[A", "\n", "\r\x1b[2J", "a\rb", "\x1b[A evil"):
        sys.stderr.write(text)
    written = "\r 50%|##  | a\\x1b[2Jb" + "\x1b[A\x1b[A" + "\n" + "\r\\x1b[2J" + "a\\rb" + "\\x1b[A evil"
    assert binary.getvalue().decode() == written


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "koi8-r", "shift-jis"])
def test_what_an_encoding_lacks_is_replaced(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minus sign stays one; characters of other scripts become question marks."""
    binary = stream(monkeypatch, encoding)
    console = TerminalConsole(stderr=True)
    ours = "".join(REPLACEMENTS)
    console.print(Panel(f"−8.416 ± 2 … {ours}"), soft_wrap=True)
    console.print(Text("日本 😀 é\udcff"))
    print("−1 日本 😀", file=sys.stderr)
    text = binary.getvalue().decode(encoding)
    for number in ("8.416", "1"):
        assert re.search(f"[-−]{re.escape(number)}", text)
    assert "?" in text
    assert "\\udcff" in text
    assert text.count("?") <= 9, "guard: nothing of ours became a question mark"


def test_drawn_characters_have_replacements() -> None:
    """Every sign that the views draw with has an ASCII replacement."""
    signs = re.compile(r"[\u2010-\u2bff\u27e6\u27e7]")
    drawn = set()
    for name in DRAWING:
        drawn |= set(signs.findall((ROOT / f"rmtrain/report/{name}.py").read_text(encoding="utf-8")))
    assert drawn <= set(REPLACEMENTS)
    assert len(drawn) > 20, "guard: the files were read"
    assert all(text.isascii() for text in REPLACEMENTS.values())


def test_closed_pipe_ends_as_by_sigpipe(tmp_path: Path) -> None:
    """The first write to a pipe without a reader stops the command; later ones go nowhere."""
    raise_on_signal()
    reading, writing = os.pipe()
    os.close(reading)
    with StandardStream(writing, "w") as target:
        with pytest.raises(Stopped) as stopped:
            target.write(b"a\n")
        assert stopped.value.exit_code == 128 + signal.SIGPIPE
        assert target.write(b"b\n") == 2


def test_missing_streams_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr("sys.stdout", None)
    protect_streams()
    print("a", file=sys.stderr)
    TerminalConsole().print("b")
    first = sys.stdout
    protect_streams()
    assert sys.stdout is first, "protecting twice changes nothing"
    sys.stdout.close()
    sys.stderr.close()


def test_one_line_is_one_line() -> None:
    assert one_line("a\nerror: b\r\nc\u2028d\te") == "a\\nerror: b\\r\\nc\\u2028d\te"


def test_pipes_get_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a terminal has a width: elsewhere a line is as long as what it says."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "40")
    values = {"layout": "shared_prefix, " * 20 + "the end"}
    console = TerminalConsole()
    assert (console.width, console.is_terminal) == (40, False), "guard: narrow, and no terminal"
    for view in (KeyValues(values), WrapText(Text(values["layout"]))):
        console.print(view)
    assert stream.getvalue().count("the end\n") == 2
