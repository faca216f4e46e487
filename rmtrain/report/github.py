"""Errors as annotations of GitHub Actions, at their place in a file.

Its runner reads every line of a log for workflow commands, such as `::set-output`. What rmtrain prints has texts of strangers in it, so
commands are switched off until rmtrain itself writes one.
Source: docs.github.com, "Workflow commands for GitHub Actions".
"""

import os
import re
import secrets
import sys
from collections.abc import Sequence

PLACE = re.compile(r"(?P<file>[^:]+):(?P<line>\d+)(?::(?P<col>\d+))?(?:  |: )(?P<message>.*)", re.DOTALL)


def in_github() -> bool:
    """Return whether this is a step of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


_TOKENS: list[str] = []
"""The token that switches commands on again, while they are off."""


def stop_commands() -> None:
    """Have GitHub's runner take the lines that follow for text alone, up to `resume_commands`."""
    if in_github():
        _TOKENS.append(secrets.token_hex(16))
        print(f"::stop-commands::{_TOKENS[-1]}", file=sys.stderr, flush=True)


def resume_commands(problems: Sequence[str] = ()) -> None:
    """Have the runner read commands again, and annotate problems, each a line that may begin with `file:line:column`."""
    if _TOKENS:
        print(f"::{_TOKENS.pop()}::", *map(annotation, problems), sep="\n", file=sys.stderr, flush=True)


def annotation(problem: str) -> str:
    """Return the workflow command that shows a problem, at its place in a file of the repository if it has one."""
    found = PLACE.fullmatch(problem)
    if found is None or not os.path.isfile(found["file"]):
        return f"::error title=rmtrain::{_escaped(problem)}"
    file = os.path.relpath(found["file"], os.environ.get("GITHUB_WORKSPACE") or os.getcwd())
    places = {"file": file, "line": found["line"], "col": found["col"], "title": "rmtrain"}
    properties = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in places.items() if value)
    return f"::error {properties}::{_escaped(found['message'])}"


def _escaped(text: str, further: str = "") -> str:
    """Escape a text as GitHub's own toolkit does (actions/toolkit, command.ts)."""
    for character in "%\r\n" + further:  # the percent sign first
        text = text.replace(character, f"%{ord(character):02X}")
    return text
