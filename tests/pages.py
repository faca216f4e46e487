"""The Markdown pages of the repository, and the blocks, commands and tables in them."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile

from tests.runs import ROOT

FILES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in FILES}
"""The text of each page, by its path in the repository."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = {">", ">>", "|", "&&", ";"}


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language."""
    return [text for kind, text in FENCE.findall(PAGES[page]) if kind == language]


def commands(page: str, program: str) -> list[list[str]]:
    """Return the words after a program in each line that starts it, also as `-m program` below a launcher."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines() if program in line]
    found = []
    for words in (shlex.split(line, comments=True) for line in lines):
        places = [place for place, word in enumerate(words) if word == program and (place == 0 or words[place - 1] == "-m")]
        found += [list(takewhile(lambda word: word not in SHELL, words[place + 1 :])) for place in places]
    return found


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the tables in a text whose first cell is code."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def code(text: str) -> list[str]:
    """Return the code spans in a text, outside of blocks."""
    spans = re.findall(r"``\s?(.+?)\s?``|`([^`\n]+)`", FENCE.sub("", text))
    return [double or single for double, single in spans]
