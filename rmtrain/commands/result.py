"""The result of a verb: a report for people and a document for machines. The command line prints one of them on stdout."""

from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.text import Text


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A result.

    report: for people.
    document: the same as JSON values.
    commands: next commands to run, one a line.
    """

    report: RenderableType
    document: dict[str, Any]
    commands: Text = field(default_factory=Text)
