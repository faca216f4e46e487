"""The data guide lists every reason to drop a row and every kind of finding."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from rmtrain.data.checks.findings import KINDS
from rmtrain.data.waterfall import INTENTIONAL_DROPS
from tests.runs import ROOT


def reasons(file: Path) -> Iterator[str]:
    """The reasons to drop a row in a file: the first argument of each `BadRow`."""
    calls = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    for call in calls:
        if isinstance(call.func, ast.Name) and call.func.id == "BadRow" and isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value)


def test_data_guide_lists_reasons_and_findings() -> None:
    guide = (ROOT / "docs/DATA.md").read_text(encoding="utf-8")
    dropped, used = guide.split("## Faults among the rows that are used")
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in dropped.splitlines() if line.startswith("| `"))))
    raised = {reason for file in (ROOT / "rmtrain/data").rglob("*.py") for reason in reasons(file)} | set(INTENTIONAL_DROPS)
    assert raised - named == set(), "reasons that the guide does not list"
    assert set(re.findall(r"^\| `(\w+)` \|", used, re.MULTILINE)) == set(KINDS)
    assert len(raised) > 30, "guard: the code was read"
